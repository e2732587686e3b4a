"""How the tensors of a model and an optimizer lie: whole, where nothing shards them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Whole:
    """Every tensor is whole. Everything here does nothing; `runner.sharded.Sharded` is the other one."""

    def whole(self, tree: Any) -> Any:
        """A state with every tensor whole."""
        return tree

    def local(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What of the tensors lies here."""
        return tensors

    def model(self, module: nn.Module, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state_dict as the module's `load_state_dict` takes it."""
        return saved

    def optimizer(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state as the optimizer's `load_state_dict` takes it."""
        return saved


WHOLE = Whole()
