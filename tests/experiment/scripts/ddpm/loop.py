"""A diffusion model by hand: noise at random times, an average of the weights, samples after each epoch."""

import ddpm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.core import rng
from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "model.width=16,32"


def train(streams, plain, *, rate=0.1, epochs=3):
    data = ddpm.Bars()
    model = streams.build(ddpm.Denoiser)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    parts = {"model": model, "optimizer": optimizer, "average": average}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        for number, rows in enumerate(streams.order(epoch, len(data)).split(8)):
            if epoch == first and number < done:
                continue
            images = data.images[rows]
            times = torch.randint(len(model.shares), (len(images),))
            noise = torch.randn_like(images)
            share = model.shares[times][:, None, None, None]
            found = model(share.sqrt() * images + (1 - share).sqrt() * noise, times)
            loss = nn.functional.mse_loss(found, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            average.update_parameters(model)
            plain.log(loss, lr=rate)
            if plain.asked:
                plain.save(parts, epoch, number + 1)
                return plain.losses
        draw(average.module, plain, streams.seed)
        plain.save(parts, epoch + 1, 0)
    plain.finish(model)
    return plain.losses


def draw(model, plain, seed):
    from PIL import Image

    step = len(plain.losses)
    with torch.no_grad(), rng.stream(rng.derive_key(seed, "action", "samples", step)):
        images = ddpm.sample(model.eval())
    sheet = torch.ones(8, len(images) * 10 - 2)
    for number, image in enumerate(images):
        sheet[:, number * 10 : number * 10 + 8] = image[0].clamp(0, 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(plain.folder / f"samples_{step}.png")


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.1, epochs=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs)
