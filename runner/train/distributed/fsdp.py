"""FSDP2: model, gradients and optimizer state in shards, one per rank; full tensors in a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from runner.train.optimizer_step.several_optimizers import get_members
from runner.train.single_process import FullTensors


def shard(module: nn.Module, device: torch.device) -> None:
    """Shard a module's parameters in place over all processes.

    The blocks that a model repeats (members of a `ModuleList` or `Sequential` with parts of their own) are gathered and
    freed one by one, the rest together; all of it after each forward pass, so that whoever looks in between (a
    checkpoint, an average of the weights) finds shards.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in [*find_blocks(module), module]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the repeated modules with parameters, inner ones first."""
    found: list[nn.Module] = []
    for parent in module.modules():
        if isinstance(parent, nn.ModuleList | nn.Sequential):
            members = [member for member in parent if not isinstance(member, nn.ModuleList | nn.ModuleDict)]
            found += [member for member in members if _has_parts(member) and member not in found]
    return found[::-1]


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None and next(module.parameters(), None) is not None


class ShardedTensors(FullTensors):
    """Layout of tensors sharded over ranks; each rank calls every method."""

    def whole(self, tree: Any) -> Any:
        """Gather every sharded tensor on the CPU of rank 0; the other ranks get None for it."""
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
        """Return the local part of each tensor, sharing its memory."""
        return [t.to_local().detach() if isinstance(t, DTensor) else t for t in tensors]

    def like(self, part: Tensor, whole: Tensor) -> Tensor:
        """Return a local part as a tensor with the layout of `whole`."""
        if not isinstance(whole, DTensor):
            return part
        where = (whole.device_mesh, whole.placements)
        return DTensor.from_local(part, *where, run_check=False, shape=whole.shape, stride=whole.stride())

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn off fused kernels except Adam's, the only ones that support shards."""
        for member in get_members(optimizer).values():
            for group in () if isinstance(member, torch.optim.Adam) else member.param_groups:
                if group.get("fused"):
                    group["fused"] = False

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a saved state_dict for the module's `load_state_dict`."""
        return {name: shard_like(saved[name], like) for name, like in module.state_dict().items() if name in saved} | {
            name: value for name, value in saved.items() if name not in module.state_dict()
        }

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Convert a saved state for the optimizer's `load_state_dict`."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        likes = dict(zip(numbers, parameters, strict=True))
        state = {
            number: {name: shard_like(value, likes[number]) for name, value in values.items()}
            for number, values in saved["state"].items()
        }
        return {**saved, "state": state}


def shard_like(value: Any, like: Any) -> Any:
    """Shard a full tensor like a sharded one of its shape; return any other value unchanged."""
    if not isinstance(value, Tensor) or not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    moved = value.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)
