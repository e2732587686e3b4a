"""Stochastic weight averaging by hand, with torch's own `AveragedModel` and `update_bn`."""

import swa
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.lr=0.1,0.05"
AVERAGED = []  # the state_dict at the end


def train(streams, plain, *, rate=0.1, epochs=5, start=2):
    data, held_out = swa.Blobs(), swa.Blobs(30, 1)
    model = streams.build(swa.Net)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    averaged = AveragedModel(model)
    parts = {"model": model, "optimizer": optimizer, "averaged": averaged}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        rows = streams.order(epoch, len(data)).split(8)
        for number, batch in enumerate(rows):
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
        evaluated = model
        if epoch + 1 >= start:
            averaged.update_parameters(model)
            state = torch.get_rng_state()
            update_bn((data.inputs[batch] for batch in rows), averaged)
            torch.set_rng_state(state)
            evaluated = averaged.module
        accuracy = test(evaluated, held_out)
        plain.write({"val/accuracy": accuracy})
        plain.save(parts, epoch + 1, 0, accuracy)
    plain.finish(averaged.module)
    AVERAGED[:] = [averaged.module.state_dict(), accuracy]
    return plain.losses


def test(model, data):
    model.eval()
    with torch.no_grad():
        hits = int((model(data.inputs).argmax(1) == data.targets).sum())
    model.train()
    return hits / len(data)


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.1, epochs=5, start=2)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs, start=told.start)
