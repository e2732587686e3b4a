"""WGAN with gradient penalty by hand: the generator learns in every fifth step."""

import torch
import wgan_gp

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "step.n_critic=2,5"


def train(streams, plain, *, rate=0.002, n_critic=5, epochs=3):
    data, held_out = wgan_gp.Rings(), wgan_gp.Rings(16, 1)
    model = streams.build(wgan_gp.WGAN)
    g_optimizer = torch.optim.Adam(model.generator.parameters(), lr=rate, betas=(0.5, 0.9))
    c_optimizer = torch.optim.Adam(model.critic.parameters(), lr=rate, betas=(0.5, 0.9))
    parts = {"model": model, "g_optimizer": g_optimizer, "c_optimizer": c_optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, batch in enumerate(streams.order(epoch, len(data)).split(8)):
            if epoch == first and number < done:
                continue
            real = data.points[batch]
            fake = model.generator(torch.randn(len(real), 3))
            c_optimizer.zero_grad()
            loss = model.critic(fake.detach()).mean() - model.critic(real).mean()
            loss = loss + 10 * wgan_gp.gradient_penalty(model.critic, real, fake.detach())
            loss.backward()
            c_optimizer.step()
            if len(plain.losses) % n_critic == 0:
                g_optimizer.zero_grad()
                (-model.critic(fake).mean()).backward()
                g_optimizer.step()
            plain.log(loss)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        distance = test(model, held_out)
        plain.write({"val/loss": distance})
        plain.save(parts, epoch + 1, 0, -distance)
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        fake = model.generator(torch.randn(len(data), 3))
        loss = model.critic(fake).mean() - model.critic(data.points).mean()
    torch.set_rng_state(state)
    model.train()
    return loss.item()


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.002, n_critic=5, epochs=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, n_critic=told.n_critic, epochs=told.epochs)
