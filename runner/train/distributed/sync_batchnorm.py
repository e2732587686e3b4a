"""Synchronized batch normalisation: statistics over the whole batch of several processes.

On a GPU torch's own kernels do it, those of `nn.SyncBatchNorm`. That refuses a CPU; for that the same is written here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm


def find_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalisation layers."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def synchronize_batch_norms(model: nn.Module, counts: Callable[[], bool]) -> None:
    """Make every batch norm of a training model use the statistics of all processes' batches.

    The modules stay what they are: names, types, hooks, and those that `freeze` keeps in eval mode.

    Args:
        model: each process calls it as often.
        counts: whether the samples at hand count; those that only stand in for a missing share do not.
    """
    for module in find_batch_norms(model):
        module.forward = partial(_compute_forward, module, counts)  # type: ignore[method-assign]


def _compute_forward(module: _BatchNorm, counts: Callable[[], bool], input: Tensor) -> Tensor:  # noqa: A002  torch's name
    if not module.training:
        plain: Tensor = type(module).forward(module, input)
        return plain
    module._check_input_dim(input)  # noqa: SLF001  what the type's own forward begins with
    momentum = 0.0 if module.momentum is None else module.momentum
    if module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            momentum = 1.0 / float(module.num_batches_tracked)
    tracked = (module.running_mean, module.running_var) if module.track_running_stats else (None, None)
    affine = (module.weight, module.bias)
    if not input.is_cuda:
        done: Tensor = _SynchronizedBatchNorm.apply(input, *affine, *tracked, module.eps, momentum, counts())
        return done
    rest = (*affine, *tracked, module.eps, momentum, dist.group.WORLD, dist.get_world_size())
    if counts():
        own: Tensor = SyncBatchNorm.apply(input, *rest)
        return own
    nothing = SyncBatchNorm.apply(input[:0], *rest)  # it only takes part, forward and backward
    stand_in = F.batch_norm(input, *tracked, *affine, training=tracked[0] is None, momentum=0.0, eps=module.eps)
    joined: Tensor = stand_in + 0 * nothing.sum()
    return joined


class _SynchronizedBatchNorm(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy 2015) over all ranks; moments joined as in Chan et al. (1983)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # noqa: A002  torch's name
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        counts: bool,
    ) -> Tensor:
        channels, wide = input.shape[1], input.double()
        others = [dim for dim in range(input.dim()) if dim != 1]
        own = torch.zeros(2 * channels + 1, dtype=torch.float64)
        if counts:
            variance, mean = torch.var_mean(wide, others, correction=0)
            own = torch.cat([mean, variance, torch.tensor([input.numel() / channels], dtype=torch.float64)])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, sizes = torch.stack(parts).split([channels, channels, 1], dim=1)
        count = float(sizes.sum())
        if count <= 1:
            message = f"Expected more than 1 value per channel when training, got input size {list(input.shape)}"
            raise ValueError(message)
        mean = (means * sizes).sum(0) / count
        squares = ((variances + (means - mean).square()) * sizes).sum(0)
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((squares / (count - 1)).to(running_var.dtype), momentum)
        shape = [1, channels, *[1] * (input.dim() - 2)]
        scale = (squares / count + eps).rsqrt()
        normal = ((wide - mean.view(shape)) * scale.view(shape)).to(input.dtype)
        ctx.save_for_backward(normal, weight, scale.to(input.dtype))
        ctx.others, ctx.shape, ctx.count, ctx.counts = others, shape, count, counts
        output: Tensor = normal if weight is None else normal * weight.to(input.dtype).view(shape)
        return output.clone() if bias is None else output + bias.to(input.dtype).view(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale = ctx.saved_tensors
        gradient = gradients[0]
        own = torch.cat([gradient.double().sum(ctx.others), (gradient * normal).double().sum(ctx.others)])
        total = own * float(ctx.counts)
        dist.all_reduce(total)
        first, second = (part.to(normal.dtype).view(ctx.shape) / ctx.count for part in total.chunk(2))
        factor = (scale if weight is None else scale * weight.to(scale.dtype)).view(ctx.shape)
        down = (gradient - first - normal * second) * factor if ctx.counts else torch.zeros_like(gradient)
        to_bias, to_weight = own.to(gradient.dtype if weight is None else weight.dtype).chunk(2)
        return down, None if weight is None else to_weight, to_bias, None, None, None, None, None
