"""Detection by hand: losses by name, targets in lists, and an evaluation that has no loss."""

import detection
import torch
from torch.utils.data import DataLoader

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "model.width=4,8"


def train(streams, plain, *, rate=0.02, epochs=4):
    data, held_out = detection.Squares(), detection.Squares(7, 1)
    model = streams.build(detection.Detector)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, rows in enumerate(streams.order(epoch, len(data)).split(4)):
            if epoch == first and number < done:
                continue
            images, targets = detection.collate([data[row] for row in rows.tolist()])
            losses = model(images, targets)
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plain.log(loss, lr=rate, **{f"train/{name}": part.item() for name, part in losses.items()})
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        overlap = test(model, held_out)
        plain.write({"val/overlap": overlap})
        plain.save(parts, epoch + 1, 0, overlap)
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    metric = detection.Overlap()
    with torch.no_grad():
        for images, targets in DataLoader(data, batch_size=3, collate_fn=detection.collate):
            metric.update(model(images), targets)
    model.train()
    return metric.compute()


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.02, epochs=4)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
