"""A GAN in mixed precision by hand: two optimizers, each with the gradients of its own half clipped."""

import gan_amp
import torch
from torch import nn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.G.lr=0.002,0.004"


def train(streams, plain, *, rate=0.002, epochs=3):
    data, held_out = gan_amp.Rings(), gan_amp.Rings(16, 1)
    model = streams.build(gan_amp.GAN)
    g_optimizer = torch.optim.Adam(model.G.parameters(), lr=rate, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(model.D.parameters(), lr=0.001, betas=(0.5, 0.999))
    criterion = nn.BCEWithLogitsLoss()
    parts = {"model": model, "g_optimizer": g_optimizer, "d_optimizer": d_optimizer}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, batch in enumerate(streams.order(epoch, len(data)).split(8)):
            if epoch == first and number < done:
                continue
            real = data.points[batch]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                fake = model.G(torch.randn(len(real), 3))
                on_real, on_fake = model.D(real), model.D(fake.detach())
                d_loss = criterion(on_real, torch.ones_like(on_real)) + criterion(on_fake, torch.zeros_like(on_fake))
            d_optimizer.zero_grad()
            d_loss.backward()
            nn.utils.clip_grad_norm_(model.D.parameters(), 1)
            d_optimizer.step()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                judged = model.D(fake)
                g_loss = criterion(judged, torch.ones_like(judged))
            g_optimizer.zero_grad()
            g_loss.backward()
            nn.utils.clip_grad_norm_(model.G.parameters(), 1)
            g_optimizer.step()
            plain.log(d_loss + g_loss, d_loss=d_loss.item())
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        loss = test(model, criterion, held_out)
        plain.write({"val/loss": loss})
        plain.save(parts, epoch + 1, 0, -loss)
    plain.finish(model)
    return plain.losses


def test(model, criterion, data):
    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        fake = model.G(torch.randn(len(data), 3))
        on_real, on_fake = model.D(data.points), model.D(fake)
        loss = criterion(on_real, torch.ones_like(on_real)) + criterion(on_fake, torch.zeros_like(on_fake))
        loss += criterion(on_fake, torch.ones_like(on_fake))
    torch.set_rng_state(state)
    model.train()
    return loss.item()


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.002, epochs=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
