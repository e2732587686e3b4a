"""A curriculum by hand: the sampler knows the epoch, and begins with what is easy."""

import curriculum
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.lr=0.1,0.3"


def train(streams, plain, *, rate=0.3, epochs=4):
    data, held_out = curriculum.Words(), curriculum.Words(16, 1)
    sampler = curriculum.EasyFirst(Subset(data, range(len(data))))
    model = streams.build(lambda: nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        rows = torch.tensor(streams.draw(sampler, epoch))
        for number, batch in enumerate(rows.split(8)):
            if epoch == first and number < done:
                continue
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.inputs[batch]), data.targets[batch])
            loss.backward()
            optimizer.step()
            plain.log(loss, lr=rate)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        accuracy = test(model, held_out)
        plain.write({"val/accuracy": accuracy})
        plain.save(parts, epoch + 1, 0, accuracy)
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    hits = 0
    with torch.no_grad():
        for inputs, targets in DataLoader(data, batch_size=256):
            hits += int((model(inputs).argmax(1) == targets).sum())
    model.train()
    return hits / len(data)


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.3, epochs=4)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
