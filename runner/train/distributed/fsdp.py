"""FSDP2: a model, its gradients and its optimizer's state in shards, one on each process; whole in a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from runner.train.single_process import Whole


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a module's parameters in place over all processes.

    The blocks that a model repeats (members of a `ModuleList` or `Sequential` with parts of their own) are gathered and
    freed one by one, the rest together; all of it after each forward pass, so that whoever looks in between (a
    checkpoint, an average of the weights) finds shards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in [*blocks(module), module]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated parts with parameters, inner ones first."""
    found: list[nn.Module] = []
    for parent in module.modules():
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            members = [member for member in parent if not isinstance(member, nn.ModuleList | nn.ModuleDict)]
            found += [member for member in members if _has_parts(member) and member not in found]
    return found[::-1]


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


class Sharded(Whole):
    """How tensors that are spread over processes are saved and put back. Each process calls all of it."""

    def whole(self, tree: Any) -> Any:
        """The same with every sharded tensor whole, on the CPU of rank 0; the others get nothing in its place."""
        if isinstance(tree, DTensor):
            full = tree.full_tensor().detach()
            return full.cpu() if dist.get_rank() == 0 else None
        if isinstance(tree, Mapping):
            changed = type(tree)((name, self.whole(member)) for name, member in tree.items())  # type: ignore[call-arg]
            if hasattr(tree, "_metadata"):  # a state_dict's versions
                changed._metadata = tree._metadata  # type: ignore[attr-defined]  # noqa: SLF001
            return changed
        return [self.whole(member) for member in tree] if isinstance(tree, list) else tree

    def here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What of the tensors lies in this process, sharing their memory."""
        return [t.to_local().detach() if isinstance(t, DTensor) else t for t in tensors]

    def like(self, part: Tensor, whole: Tensor) -> Tensor:
        """Such a part of a tensor that lies as `whole` does, as that tensor."""
        if not isinstance(whole, DTensor):
            return part
        where = (whole.device_mesh, whole.placements)
        return DTensor.from_local(part, *where, run_check=False, shape=whole.shape, stride=whole.stride())

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer use what works on tensors that lie so: of torch's fused ones only Adam's know shards."""
        for member in getattr(optimizer, "optimizers", {"": optimizer}).values():
            for group in () if isinstance(member, torch.optim.Adam) else member.param_groups:
                if group.get("fused"):
                    group["fused"] = False

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state_dict as the module's `load_state_dict` takes it."""
        return {name: spread(saved[name], like) for name, like in module.state_dict().items() if name in saved} | {
            name: value for name, value in saved.items() if name not in module.state_dict()
        }

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state as the optimizer's `load_state_dict` takes it."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        likes = dict(zip(numbers, parameters, strict=True))
        state = {
            number: {name: spread(value, likes[number]) for name, value in values.items()}
            for number, values in saved["state"].items()
        }
        return {**saved, "state": state}


def spread(value: Any, like: Any) -> Any:
    """A whole tensor as the shards of one like it; anything else, also a tensor of another shape, as it is."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
