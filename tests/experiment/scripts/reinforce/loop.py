"""Reinforce by hand: an episode a step, until the reward of late is high enough."""

import reinforce
import torch
from torch import nn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.lr=0.1,0.2"


def train(streams, plain, *, rate=0.2, most=300):
    model = streams.build(lambda: nn.Linear(7, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    parts = {"model": model, "optimizer": optimizer}
    streams.begin()
    first, _ = plain.restore(parts)
    running = plain.best or 0.0
    for episode in range(first, most):
        world, chances, rewards, ended = reinforce.Corridor(), [], [], False
        while not ended:
            choice = torch.distributions.Categorical(logits=model(world.observe()))
            action = choice.sample()
            chances.append(choice.log_prob(action))
            reward, ended = world.act(bool(action))
            rewards.append(reward)
        running = 0.9 * running + 0.1 * sum(rewards)
        value, returns = 0.0, []
        for reward in reversed(rewards):
            value = reward + 0.95 * value
            returns.insert(0, value)
        loss = -(torch.stack(chances) * (torch.tensor(returns) - 0.4)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        plain.log(loss, **{"train/running": running})
        if running > 0.8:
            break
        if plain.asked:
            plain.best = running
            plain.save(parts, episode + 1, 0)
            return plain.losses
    plain.finish(model)
    return plain.losses


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.2, most=300)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, most=told.most)
