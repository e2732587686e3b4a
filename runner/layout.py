"""How the tensors of a model and an optimizer lie: whole, where nothing shards them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Whole:
    """Every tensor is whole. Everything here does nothing; `runner.sharded.Sharded` is the other one."""

    def whole(self, tree: Any) -> Any:
        """A state with every tensor whole."""
        return tree

    def here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """What of the tensors lies in this process, sharing their memory."""
        return tensors

    def like(self, part: Tensor, whole: Tensor) -> Tensor:
        """Such a part of a tensor that lies as `whole` does, as that tensor."""
        return part

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimizer use what works on tensors that lie so."""

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state_dict as the module's `load_state_dict` takes it."""
        return saved

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state as the optimizer's `load_state_dict` takes it."""
        return saved


WHOLE = Whole()
