"""Progressive resizing by hand: small images first, growing step by step until the third epoch ends."""

import resizing
import torch
from torch.nn.functional import cross_entropy, interpolate

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "transform.train.grow.smallest=8,12"


def train(streams, plain, *, rate=0.2, epochs=4, smallest=8, largest=16):
    images, labels = resizing.Rings().tensors
    model = streams.build(resizing.Net)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    each = -(-len(images) // 8)
    step = 0
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, rows in enumerate(streams.order(epoch, len(images)).split(8)):
            step = epoch * each + number
            if epoch == first and number < done:
                continue
            share = min(1.0, step / (3 * each))
            side = 4 * round((smallest + share * (largest - smallest)) / 4)
            batch = interpolate(images[rows], (side, side), mode="bilinear", antialias=True)
            loss = cross_entropy(model(batch), labels[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            plain.log(loss, side=side)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        accuracy = measure(model, *resizing.Rings(16, 1).tensors)
        plain.write({"val/accuracy": accuracy})
        plain.save(parts, epoch + 1, 0, accuracy)
    plain.finish(model)
    return plain.losses


@torch.no_grad()
def measure(model, images, labels):
    model.eval()
    found = [model(part).argmax(1) for part in images.split(256)]
    model.train()
    return (torch.cat(found) == labels).float().mean().item()


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.2, epochs=4, smallest=8, largest=16)
    run = Plain(told.folder, told.log_every)
    run.listen()
    sizes = {"smallest": told.smallest, "largest": told.largest}
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs, **sizes)
