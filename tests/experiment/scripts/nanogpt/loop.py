"""A small GPT by hand: weight decay for matrices alone, warmup and cosine, accumulation, clipping."""

import nanogpt
import torch
from torch import nn

from tests.experiment.scripts.plain import Plain, read_arguments

SWEEP = "optimizer.lr=0.01,0.003"


def train(streams, plain, *, rate=0.01, epochs=5, warmup=3, size=4, micro=2):
    data, held_out = nanogpt.Text(), nanogpt.Text(first=140, last=190)
    model = streams.build(nanogpt.GPT)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0},
        {"params": decayed, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))
    each = (len(data) // size + 1) // micro
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * each - warmup, eta_min=0.001)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    streams.begin()
    first, done = plain.restore(parts)
    for epoch in range(first, epochs):
        batches = [rows for rows in streams.order(epoch, len(data)).split(size) if len(rows) == size]
        for number in range(0, len(batches), micro):
            if epoch == first and number < done:
                continue
            step = len(plain.losses)
            if step < warmup:
                for group in optimizer.param_groups:
                    group["lr"] = rate * (step + 1) / warmup
            whole = torch.zeros(())
            for rows in batches[number : number + micro]:
                tokens, following = (torch.stack(part) for part in zip(*[data[row] for row in rows], strict=True))
                loss = nn.functional.cross_entropy(model(tokens), following)
                (loss / micro).backward()
                whole += loss.detach() / micro
            nn.utils.clip_grad_norm_(model.parameters(), 1)
            optimizer.step()
            optimizer.zero_grad()
            if step >= warmup:
                scheduler.step()
            plain.log(whole, lr=optimizer.param_groups[0]["lr"])
            if plain.asked:
                plain.save(parts, epoch, number + micro)
                return plain.losses
        loss = test(model, held_out)
        plain.write({"val/loss": loss})
        plain.save(parts, epoch + 1, 0, -loss)
    plain.finish(model)
    return plain.losses


def test(model, data):
    model.eval()
    with torch.no_grad():
        tokens, following = (torch.stack(part) for part in zip(*[data[row] for row in range(len(data))], strict=True))
        loss = nn.functional.cross_entropy(model(tokens), following)
    model.train()
    return loss.item()


if __name__ == "__main__":
    from tests.experiment.scripts.harness import Streams

    told = read_arguments(rate=0.01, epochs=5, warmup=3)
    run = Plain(told.folder, told.log_every)
    run.listen()
    train(Streams(told.seed), run, rate=told.rate, epochs=told.epochs, warmup=told.warmup)
