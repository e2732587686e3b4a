"""Several optimizers as one, each with its own parameters, as a GAN needs them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer


def get_members(optimizer: Optimizer) -> Mapping[str, Optimizer]:
    """Return the optimizers that an optimizer consists of, by name; a single one has the name ""."""
    members = getattr(optimizer, "optimizers", None)
    return members if isinstance(members, Mapping) else {"": optimizer}


class Optimizers(Optimizer):
    """Named optimizers: `optimizers["generator"]` is one; `step` and `zero_grad` act on all.

    Their parameter groups stand here in a row, the same dictionaries: what a scheduler sets holds for them. The
    state_dict has the form of a single optimizer's.

    Raises:
        ValueError: two of them hold the same parameter.
    """

    def __init__(self, **optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers.values() for group in optimizer.param_groups], {})
        for one in (self, *optimizers.values()):
            vars(one)["_opt_called"] = True  # a scheduler warns where its step comes first: one may wait its turn

    def __getitem__(self, name: str) -> Optimizer:
        return self.optimizers[name]

    @property
    def state(self) -> Any:
        """Optimizer state by parameter, merged over the member optimizers."""
        return {
            parameter: state for optimizer in self.optimizers.values() for parameter, state in optimizer.state.items()
        }

    @state.setter
    def state(self, _: Any) -> None:
        """Optimizer state by parameter, merged over the member optimizers."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step each optimizer."""
        loss = None if closure is None else closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state_dict of a single optimizer over all groups."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        before = 0
        for optimizer in self.optimizers.values():
            part = optimizer.state_dict()
            state |= {before + index: value for index, value in part["state"].items()}
            groups += [group | {"params": [before + i for i in group["params"]]} for group in part["param_groups"]]
            before += _count(part)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict."""
        groups = list(state_dict["param_groups"])
        before = 0
        for optimizer in self.optimizers.values():
            count, own = _count(optimizer.state_dict()), groups[: len(optimizer.param_groups)]
            del groups[: len(optimizer.param_groups)]
            state = {i - before: v for i, v in state_dict["state"].items() if before <= i < before + count}
            own = [group | {"params": [index - before for index in group["params"]]} for group in own]
            optimizer.load_state_dict({"state": state, "param_groups": own})
            before += count
        self.param_groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]


def _count(state_dict: dict[str, Any]) -> int:
    return sum(len(group["params"]) for group in state_dict["param_groups"])
