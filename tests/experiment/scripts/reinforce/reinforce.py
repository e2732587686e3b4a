import torch
from torch import nn


class Corridor:
    """A walk that is over at the right end, where there is a reward, at the left end, or after 20 steps."""

    def __init__(self, length=7):
        self.length, self.place, self.time = length, length // 2, 0

    def observe(self):
        return nn.functional.one_hot(torch.tensor(self.place), self.length).float()

    def act(self, right):
        self.place, self.time = self.place + (1 if right else -1), self.time + 1
        ended = self.place in (0, self.length - 1) or self.time == 20
        return float(self.place == self.length - 1), ended


class Reinforce:
    """One episode, and the policy's gradient; `running` is the reward of late."""

    def __init__(self, discount=0.95):
        self.discount, self.running = discount, 0.0

    def __call__(self, batch, model, loss):
        world, chances, rewards, ended = Corridor(), [], [], False
        while not ended:
            choice = torch.distributions.Categorical(logits=model(world.observe()))
            action = choice.sample()
            chances.append(choice.log_prob(action))
            reward, ended = world.act(bool(action))
            rewards.append(reward)
        self.running = 0.9 * self.running + 0.1 * sum(rewards)
        returns = [rewards[-1] * self.discount ** (len(rewards) - 1 - place) for place in range(len(rewards))]
        value = -(torch.stack(chances) * (torch.tensor(returns) - 0.4)).sum()
        return {"loss": value, "running": self.running}

    def state_dict(self):
        return {"running": self.running}

    def load_state_dict(self, state):
        self.running = state["running"]
