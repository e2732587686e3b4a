"""Rules of `torch.vmap` for layers of a stack: linear, convolution, pooling, dropout, cross entropy.

torch's own rules move the dimension of the jobs to the front before each layer. Here a stack of images is one batch
[N, jobs * C, H, W] in channels_last from the first convolution to the last, and a convolution of all jobs is one
grouped convolution. Dropout draws each job's mask from a generator of that job, as the job alone would.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from runner.train.vectorized.jobs_tensor import DirectCall, JobsTensor, NoRuleError, apply_rule
from runner.train.vectorized.per_job import PerJobNumber, PerJobNumberError

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
LANES = 16  # numbers that a CPU's softmax takes at once; a shorter row it takes one by one
FEWEST_PADDED = 5  # classes that are filled up to them
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class StackedConvolution(torch.autograd.Function):
    """Convolution whose rule of vmap is one grouped convolution of all jobs."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        function, stride, padding, dilation, groups = settings
        made: Tensor = function(x, weight, bias, stride, padding, dilation, groups)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any
    ) -> tuple[Tensor, int]:
        """Convolve all jobs at once; each job's images get its own kernels."""
        x_dim, weight_dim, bias_dim, _ = in_dims
        function, stride, padding, dilation, groups = settings
        jobs = info.batch_size
        dims = CONVOLUTIONS[function] + 2
        if weight_dim is None:
            weight = weight.unsqueeze(0).expand(jobs, *weight.shape)
        else:
            weight = weight.movedim(weight_dim, 0)
        kernels = weight.flatten(0, 1)
        shared = x_dim is None
        if shared and groups == 1:  # one dense convolution with the kernels of all jobs
            images, each = x, 1
        else:
            if x_dim is None:
                x = x.unsqueeze(-dims).expand(*x.shape[: 1 - dims], jobs, *x.shape[1 - dims :])
            else:
                x = x.movedim(x_dim, -dims)  # [N, jobs, C, ...], or [jobs, C, ...] of images without a batch
            images, each = x.flatten(-dims, 1 - dims), jobs * groups
        if images.dim() in LAYOUTS:
            images = images.contiguous(memory_format=LAYOUTS[images.dim()])
            kernels = kernels.contiguous(memory_format=LAYOUTS[kernels.dim()])
        biases = None
        if bias is not None:
            biases = bias.movedim(bias_dim, 0).flatten() if bias_dim is not None else bias.repeat(jobs)
        made = function(images, kernels, biases, stride, padding, dilation, each)
        place = made.dim() - dims + 1
        return made.unflatten(place, (jobs, -1)), place


class BatchedLinear(torch.autograd.Function):
    """Batched product whose gradients have the layout of the weights, so that none is copied into it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Multiply rows [jobs, N, inputs] by weights [jobs, outputs, inputs]."""
        ctx.save_for_backward(rows, weight)
        return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows, weight and bias."""
        rows, weight = ctx.saved_tensors
        (grad,), (of_rows, of_weight, of_bias) = grads, ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if of_rows else None,
            torch.bmm(grad.transpose(1, 2), rows) if of_weight else None,
            grad.sum(1) if of_bias else None,
        )


class StackedLinear(torch.autograd.Function):
    """Linear layer whose rule of vmap is one batched product; of a shared input, one product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, int]:
        """Multiply the inputs of each job by its own weights."""
        x_dim, weight_dim, bias_dim = in_dims
        jobs = info.batch_size
        weight = weight.movedim(weight_dim, 0) if weight_dim is not None else weight.expand(jobs, *weight.shape)
        if bias is not None:
            bias = bias.movedim(bias_dim, 0) if bias_dim is not None else bias.expand(jobs, *bias.shape)
        if x_dim is None:
            made = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
            return made.unflatten(-1, (jobs, -1)), made.dim() - 1
        x = x.movedim(x_dim, 0)
        rows = x.reshape(jobs, -1, x.shape[-1])
        kernels = weight.transpose(1, 2)
        if bias is None:
            made = torch.bmm(rows, kernels)
        elif isinstance(info, DirectCall) and not torch.is_autocast_enabled(x.device.type):
            made = BatchedLinear.apply(rows, weight, bias)
        else:
            made = torch.baddbmm(bias.unsqueeze(1), rows, kernels)
        return made.view(*x.shape[:-1], made.shape[-1]), 0


class StackedCrossEntropy(torch.autograd.Function):
    """Cross entropy with class indices, whose rule of vmap is one call for the samples of all jobs."""

    @staticmethod
    def forward(output: Tensor, target: Tensor, settings: tuple[int, str, float]) -> Tensor:
        ignored, reduction, smoothing = settings
        return F.cross_entropy(output, target, ignore_index=ignored, reduction=reduction, label_smoothing=smoothing)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], output: Tensor, target: Tensor, settings: tuple[int, str, float]
    ) -> tuple[Tensor, int]:
        """Sum or average the losses of each job's samples."""
        ignored, reduction, smoothing = settings
        jobs = info.batch_size
        output, target = (
            value if dim == 0 else value.expand(jobs, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in ((output, in_dims[0]), (target, in_dims[1]))
        )
        logits, classes = output.flatten(0, 1), target.flatten()
        many = logits.shape[1]
        if logits.is_cpu and not smoothing and not 0 <= ignored < many and is_all_below(classes, many):
            if FEWEST_PADDED <= many < LANES:  # half the time of ten classes
                logits = F.pad(logits, (0, LANES - many), value=-torch.inf)
            each = F.cross_entropy(logits, classes, reduction="none").view(jobs, -1)
            return (each.sum(1) if reduction == "sum" else each.mean(1)), 0
        each = F.cross_entropy(logits, classes, ignore_index=ignored, reduction="none", label_smoothing=smoothing)
        whole = each.view(jobs, -1).sum(1)
        return (whole if reduction == "sum" else whole / (target != ignored).sum(1)), 0


def is_all_below(classes: Tensor, count: int) -> bool:
    """Return whether class indices are in range and none is ignored; of others torch says what is wrong."""
    return classes.numel() > 0 and torch.equal(classes, classes.clamp(0, count - 1))


class StackedBatchNorm(torch.autograd.Function):
    """Batch norm whose rule of vmap is one batch norm of the channels of all jobs."""

    @staticmethod
    def forward(
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        settings: tuple[bool, float, float],
    ) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        settings: tuple[bool, float, float],
    ) -> tuple[Tensor, int]:
        """Normalize each channel of each job; the running statistics of all jobs are updated in place."""
        jobs = info.batch_size
        x = x.movedim(in_dims[0], 1) if in_dims[0] is not None else x.unsqueeze(1).expand(-1, jobs, *x.shape[1:])

        def join(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None:
                return None
            return (tensor.expand(jobs, -1) if dim is None else tensor.movedim(dim, 0)).flatten()

        mean, var, weight, bias = map(join, (mean, var, weight, bias), in_dims[1:5])
        made = F.batch_norm(x.flatten(1, 2), mean, var, weight, bias, *settings)
        return made.unflatten(1, (jobs, -1)), 1


class StackedPooling(torch.autograd.Function):
    """Layer that treats every channel alike, so that the channels of all jobs are those of one image."""

    @staticmethod
    def forward(x: Tensor, call: Callable[[Tensor], Tensor], _dims: int) -> Tensor:
        return call(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, call: Callable[[Tensor], Tensor], dims: int
    ) -> tuple[Tensor, int]:
        """Pool the images of all jobs at once."""
        assert in_dims[0] is not None
        x = x.movedim(in_dims[0], -dims - 2)
        made = call(x.flatten(-dims - 2, -dims - 1))
        if isinstance(info, DirectCall) and made.dim() == 4:
            made = GradientAsOutput.apply(made)
        place = made.dim() - dims - 1
        return made.unflatten(place, (info.batch_size, -1)), place


class GradientAsOutput(torch.autograd.Function):
    """Identity whose gradient has the layout of its output.

    A pooling in channels_last copies one of another layout twice, after it has enlarged it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return it."""
        ctx.last = x.is_contiguous(memory_format=torch.channels_last)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient in the layout of the output."""
        (grad,) = grads
        return grad.contiguous(memory_format=torch.channels_last) if ctx.last else grad


class StackedDropout(torch.autograd.Function):
    """Dropout with each job's mask from the generator of that job.

    The number of the job is an argument, so that the rule holds for an input that all jobs share, too.
    """

    @staticmethod
    def forward(_x: Tensor, _job: Tensor, _masks: "DropoutMasks") -> Tensor:
        message = "a dropout of a stack was called outside vmap"
        raise RuntimeError(message)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, _job: Tensor, masks: "DropoutMasks"
    ) -> tuple[Tensor, int]:
        """Multiply by masks of 0 and 1 / (1 - p), as torch's dropout does."""
        x = x.unsqueeze(0).expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        return x * masks.draw(x), 0


@dataclass(frozen=True)
class DropoutMasks:
    """Masks of one dropout: the rate and the generator of each job.

    On the CPU each job gets the mask that `torch.nn.functional.dropout` draws for the job alone from the same state of
    the generator: the same operator, shape and memory format.
    """

    rates: Sequence[float]
    generators: Sequence[torch.Generator]
    whole_channels: bool = False
    channels_last: bool = False

    def draw(self, x: Tensor) -> Tensor:
        """Draw the masks of x [jobs, N, ...], of numbers 0 and 1 / (1 - p)."""
        shape = x.shape[1:]
        if self.whole_channels:
            shape = torch.Size([*shape[:2], *[1] * (len(shape) - 2)])
        last = self.channels_last and len(shape) == 4 and not self.whole_channels
        layout = torch.channels_last if last else torch.contiguous_format
        rows = []
        for rate, generator in zip(self.rates, self.generators, strict=True):
            row = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
            if rate in (0, 1):
                rows.append(row.fill_(1 - rate))
            else:
                rows.append(row.bernoulli_(1 - rate, generator=generator).div_(1 - rate))
        return torch.stack(rows)


DROPOUTS: dict[Any, int] = {F.dropout: 0, F.dropout1d: 1, F.dropout2d: 2, F.dropout3d: 3}  # dimensions of a channel


POOLS: dict[Any, int] = {
    F.max_pool1d: 1,
    F.max_pool2d: 2,
    F.max_pool3d: 3,
    torch.max_pool1d: 1,
    torch.max_pool2d: 2,
    torch.max_pool3d: 3,
    F.avg_pool1d: 1,
    F.avg_pool2d: 2,
    F.avg_pool3d: 3,
    F.adaptive_avg_pool1d: 1,
    F.adaptive_avg_pool2d: 2,
    F.adaptive_avg_pool3d: 3,
}


OF_LAYERS = frozenset({*CONVOLUTIONS, *POOLS, *DROPOUTS, F.linear, F.cross_entropy, F.batch_norm})


class StackRules(TorchFunctionMode):
    """Context of a stacked step: it answers torch's functions with the rules of this file.

    Args:
        generators: one a job, of its dropout.
        channels_last: whether the jobs alone lay images out in channels_last, as `device.memory_format` says.
        convolve: whether convolutions and pooling take the rules of this file, not those of torch.

    Attributes:
        job: the number of the job under vmap; set by the function that vmap maps.
        drawn: whether a generator was drawn from.
        draws: whether one may be.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], *, channels_last: bool = False, convolve: bool = True
    ) -> None:
        super().__init__()
        self.generators, self.channels_last, self.convolve = generators, channels_last, convolve
        self.job: Tensor | None = None
        self.drawn, self.draws = False, True

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Apply a rule, or call the function."""
        return self.answer(func, args, dict(kwargs or {}))

    def has_rule(self, func: Any) -> bool:
        """Return whether a function may have a rule."""
        return func in OF_LAYERS

    def answer(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Apply a rule, or call the function."""
        if func is F.linear:
            return _apply_linear(*args, **named)
        if self.convolve and func in CONVOLUTIONS:
            return _apply_convolution(func, *args, **named)
        if self.convolve and func in POOLS:
            return _pool(func, *args, **named)
        if func in DROPOUTS:
            return self._drop(func, *args, **named)
        if func is F.cross_entropy:
            smoothing = named.pop("label_smoothing", 0.0)
            if isinstance(smoothing, PerJobNumber):
                return self._smooth(smoothing, *args, **named)
            return _apply_cross_entropy(smoothing, *args, **named)
        if any(map(_is_per_job, args)) or any(map(_is_per_job, named.values())):
            message = f"{getattr(func, '__name__', func)} takes one number, and the jobs have several"
            raise PerJobNumberError(message)
        if self.convolve and func is F.batch_norm:
            return _apply_batch_norm(*args, **named)
        return func(*args, **named)

    def _drop(
        self,
        func: Any,
        input: Tensor,  # noqa: A002  torch's own word, which may be said by name
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> Tensor:
        if not training or (not _is_per_job(p) and p == 0):
            return input
        dims = DROPOUTS[func]
        if dims and input.dim() != dims + 2:
            message = f"{func.__name__} of an input without a batch"
            raise NotImplementedError(message)
        rates = p.values if isinstance(p, PerJobNumber) else (p,) * len(self.generators)
        if not self.draws:
            message = "dropout in an evaluation"
            raise NoRuleError(message)
        self.drawn = True
        masks = DropoutMasks(rates, self.generators, whole_channels=dims > 0, channels_last=self.channels_last)
        made: Tensor = apply_rule(StackedDropout, input, self.job, masks)
        return input.copy_(made) if inplace else made

    def _smooth(self, smoothing: PerJobNumber, *args: Any, **named: Any) -> Tensor:
        """Smooth the labels of each job by its own share: the loss is linear in it."""
        assert self.job is not None
        share = torch.tensor(smoothing.values, device=self.job.device)[self.job]
        plain, smooth = (F.cross_entropy(*args, **{**named, "label_smoothing": one}) for one in (0.0, 1.0))
        return (1 - share) * plain + share * smooth


def _apply_batch_norm(
    input: Tensor,  # noqa: A002  torch's own word, which may be said by name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    settings = (training, momentum, eps)
    made: Tensor = apply_rule(StackedBatchNorm, input, running_mean, running_var, weight, bias, settings)
    return made


def _apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
    if type(input) is type(weight) is type(bias) is JobsTensor:
        rows, weights, biases = input.stacked, weight.stacked, bias.stacked
        if (
            input.place == weight.place == bias.place == 0
            and rows.dim() == weights.dim() == 3
            and not torch.is_autocast_enabled(rows.device.type)
        ):  # as `StackedLinear` does it, with a third of the Python
            return JobsTensor(BatchedLinear.apply(rows, weights, biases), 0, input.rules)
    if weight.dim() != 2:
        return F.linear(input, weight, bias)
    made: Tensor = apply_rule(StackedLinear, input, weight, bias)
    return made


def _apply_cross_entropy(smoothing: float, *args: Any, **named: Any) -> Tensor:
    """Compute a cross entropy, by the rule if it is of logits [N, C] and classes [N], unweighted."""
    simple = (
        len(args) == 2
        and named.get("weight") is None
        and named.get("size_average") is None
        and named.get("reduce") is None
        and named.get("reduction", "mean") in ("mean", "sum")
        and args[0].dim() == 2
        and args[1].dim() == 1
    )
    if not simple:
        return F.cross_entropy(*args, **{**named, "label_smoothing": smoothing})
    settings = (named.get("ignore_index", -100), named.get("reduction", "mean"), smoothing)
    made: Tensor = apply_rule(StackedCrossEntropy, *args, settings)
    return made


def _is_stacked(value: Tensor) -> bool:
    return isinstance(value, JobsTensor) or torch._C._functorch.is_batchedtensor(value)  # noqa: SLF001


def _is_per_job(value: Any) -> bool:
    return isinstance(value, PerJobNumber)


def _apply_convolution(
    func: Any,
    input: Tensor,  # noqa: A002  torch's own word, which may be said by name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    made: Tensor = apply_rule(StackedConvolution, input, weight, bias, (func, stride, padding, dilation, groups))
    return made


def _pool(func: Any, input: Tensor, *args: Any, **named: Any) -> Any:  # noqa: A002
    if named.get("return_indices") or not _is_stacked(input):
        return func(input, *args, **named)
    return apply_rule(StackedPooling, input, lambda x: func(x, *args, **named), POOLS[func])
