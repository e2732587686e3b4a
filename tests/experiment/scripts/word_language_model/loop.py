"""The word language model by hand: truncated backpropagation, clipped, and the perplexity of what is held out."""

import math

import torch
import word_language_model
from torch import nn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.lr=1.0,2.0"


def train(streams, plain, *, rate=2.0, epochs=3):
    data = word_language_model.Chunks()
    held_out = word_language_model.Chunks(180, seed=1)
    model = streams.build(word_language_model.LSTMModel)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        hidden = None
        for number in range(len(data)):
            if epoch == first and number < done:
                continue
            chunk = data[number]
            output, hidden = model(chunk["words"], hidden)
            hidden = tuple(part.detach() for part in hidden)
            loss = nn.functional.cross_entropy(output.flatten(0, 1), chunk["next"].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            optimizer.zero_grad()
            plain.log(loss, lr=rate)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        perplexity = test(model, held_out)
        plain.write({"val/perplexity": perplexity})
        plain.save(parts, epoch + 1, 0, -perplexity)
    state = torch.load(plain.folder / "best.pt", weights_only=False)
    model.load_state_dict(state["model"])
    plain.write({"test/perplexity": test(model, word_language_model.Chunks(180, seed=2))})
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    total, count, hidden = 0.0, 0, None
    with torch.no_grad():
        for number in range(len(data)):
            chunk = data[number]
            output, hidden = model(chunk["words"], hidden)
            loss = nn.functional.cross_entropy(output.flatten(0, 1), chunk["next"].flatten())
            total += float(loss) * chunk["next"].numel()
            count += chunk["next"].numel()
    model.train()
    return math.exp(total / count)


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=2.0, epochs=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
