"""Two heads by hand: a class and a number from one body, each with a metric of its own."""

import math

import torch
import two_heads

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "loss.share=0.1,0.5"


def train(streams, plain, *, rate=0.1, epochs=3):
    data, held_out = two_heads.Faces(), two_heads.Faces(21, 1)
    model = streams.build(two_heads.TwoHeads)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, rows in enumerate(streams.order(epoch, len(data)).split(8)):
            if epoch == first and number < done:
                continue
            optimizer.zero_grad()
            batch = {"kind": data.kinds[rows], "age": data.ages[rows]}
            loss = two_heads.weigh(model(data.points[rows]), batch)
            loss.backward()
            optimizer.step()
            plain.log(loss, lr=rate)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        values = test(model, held_out)
        plain.write(values)
        plain.save(parts, epoch + 1, 0, values["val/accuracy"])
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    hits, squares = 0, 0.0
    with torch.no_grad():
        for rows in torch.arange(len(data)).split(256):  # a DataLoader would draw from the stream of dropout
            output = model(data.points[rows])
            hits += int((output["kind"].argmax(1) == data.kinds[rows]).sum())
            squares += float((output["age"] - data.ages[rows]).square().sum())
    model.train()
    return {"val/accuracy": hits / len(data), "val/rmse": math.sqrt(squares / len(data))}


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.1, epochs=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
