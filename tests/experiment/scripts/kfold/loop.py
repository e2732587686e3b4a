"""K-fold cross-validation by hand: train on all folds but one, tell the accuracy on that one, and their mean."""

import statistics

import kfold
import torch
from torch import nn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "dataset.fold=0,1"


def train(streams, plain, *, fold=0, rate=0.1, epochs=3):
    data = kfold.Blobs()
    rows = streams.split(len(data), folds=3, fold=fold)
    scaler = kfold.Standardize()
    scaler.fit(torch.utils.data.Subset(data, rows["train"]))
    inputs, targets = scaler(data.inputs[rows["train"]]), data.targets[rows["train"]]
    model = streams.build(lambda: nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        batches = streams.order(epoch, len(inputs)).split(8)
        for number, batch in enumerate(batches):
            if epoch == first and number < done:
                continue
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            plain.log(loss, lr=optimizer.param_groups[0]["lr"])
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        accuracy = evaluate(model, scaler(data.inputs[rows["val"]]), data.targets[rows["val"]])
        plain.write({"val/accuracy": accuracy})
        plain.save(parts, epoch + 1, 0, accuracy)
    plain.finish(model)
    return plain.losses


def evaluate(model, inputs, targets):
    model.eval()
    with torch.no_grad():
        hits = (model(inputs).argmax(1) == targets).double().mean().item()
    model.train()
    return hits


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.1, epochs=3)
    found = []
    for number in range(3):
        run = Plain(f"{told.folder}/fold{number}", told.log_every)
        run.listen()
        train(Streams(told.seed), run, fold=number, rate=told.rate, epochs=told.epochs)
        found.append(run.values["val/accuracy"])
    print(f"accuracy {statistics.mean(found):.4f} ± {statistics.stdev(found):.4f}")  # noqa: T201
