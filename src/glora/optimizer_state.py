"""A parameter's place and state in an optimiser, handed over to the parameter that replaces it.

The successor goes into the same place of the same parameter group, so no group is added and schedulers notice nothing.
What the optimiser keeps for each element follows the columns that are kept; what a new column starts with depends on
what the number is:

    first moment   0. A running mean of gradients of which there were none.
    second moment  the mean of the kept columns'. Zero would be wrong: Adam's bias correction is long past when the
                   column is born, and with v = 0 its steps are (1-β1^t)/√(1-β2^t) times the normal, which is 3.2
                   at the first, 6.5 at the tenth and 3.2 still at the hundredth.
    step size      the mean of the kept columns' (Rprop adapts one for each element).
    average        the new column itself (ASGD's running mean of the weights).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import nn

Kind = Literal["first moment", "second moment", "average"]

# Every per-element state of the optimisers that torch ships and of transformers' Adafactor. A step size is treated as a second
# moment is: by its mean.
STATE_KINDS: dict[str, Kind] = {
    "exp_avg": "first moment",  # Adam, AdamW, NAdam, RAdam, Adamax, Adafactor
    "momentum_buffer": "first moment",  # SGD, RMSprop, Muon
    "grad_avg": "first moment",  # RMSprop, centred
    "prev": "first moment",  # Rprop: the last gradient
    "exp_avg_sq": "second moment",  # Adam, AdamW, NAdam, RAdam
    "max_exp_avg_sq": "second moment",  # Adam with amsgrad
    "exp_inf": "second moment",  # Adamax: a running maximum
    "square_avg": "second moment",  # RMSprop, Adadelta
    "acc_delta": "second moment",  # Adadelta: of the updates
    "sum": "second moment",  # Adagrad
    "row_var": "second moment",  # torch's Adafactor, of a matrix
    "col_var": "second moment",
    "variance": "second moment",  # torch's Adafactor, of a vector
    "exp_avg_sq_row": "second moment",  # transformers' Adafactor, of a matrix
    "exp_avg_sq_col": "second moment",
    "step_size": "second moment",  # Rprop
    "ax": "average",  # ASGD
}

# Adafactor keeps means over one of the last two dimensions of a matrix; over the ranks, there is no column to follow.
MEAN_OVER: dict[str, int] = {"row_var": -1, "col_var": -2, "exp_avg_sq_row": -1, "exp_avg_sq_col": -2}

# (name of the state, its value) -> that of the successor; built by resize.py, which knows which columns are kept.
Carry = Callable[[str, torch.Tensor], torch.Tensor]


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The torch optimiser inside accelerate's wrapper."""
    while not type(optimizer).__module__.startswith("torch.optim") and isinstance(
        inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer
    ):
        optimizer = inner
    return optimizer


def holds(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimiser updates this parameter."""
    return any(p is parameter for group in optimizer.param_groups for p in group["params"])


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser whose state cannot follow a parameter to another shape.

    Raises:
        ValueError: LBFGS, whose history is one flat vector over all parameters, or per-element state of an unknown
            name.
    """
    inner = unwrap_optimizer(optimizer)
    name = type(inner).__name__
    if isinstance(inner, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS keeps one flat history over all parameters, which cannot follow a matrix to another rank; use AdamW"
        )
    for group in inner.param_groups:
        for parameter in group["params"]:
            for key, value in inner.state.get(parameter, {}).items():
                if torch.is_tensor(value) and value.dim() > 0 and key not in STATE_KINDS:
                    raise ValueError(
                        f"{name} keeps {key!r} of shape {tuple(value.shape)} for a parameter, and glora does not know "
                        f"what a new column should start with there; use an optimiser of torch.optim, such as AdamW"
                    )


def group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> int | None:
    """The number of the parameter group that holds this parameter; None if none does."""
    groups = unwrap_optimizer(optimizer).param_groups
    return next((i for i, group in enumerate(groups) if any(p is parameter for p in group["params"])), None)


def insert_parameter(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, group: int, places: Mapping[nn.Parameter, int]
) -> None:
    """Add a parameter to a group that exists; PyTorch's add_param_group would make one that no scheduler knows.

    Args:
        optimizer: The optimiser.
        parameter: What it shall train from now on.
        group: The number of its group.
        places: The model's order of parameters, which the group keeps: an optimiser's saved state knows parameters by it.
    """
    params = unwrap_optimizer(optimizer).param_groups[group]["params"]
    later = (i for i, other in enumerate(params) if places.get(other, -1) > places[parameter])
    params.insert(next(later, len(params)), parameter)


def replace_parameter(
    optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter | None, carry: Carry | None = None
) -> None:
    """Put `new` where `old` was, with its state; None takes `old` out of its group.

    A parameter that the optimiser does not hold (one that is frozen) is left alone.
    """
    inner = unwrap_optimizer(optimizer)
    for group in inner.param_groups:
        for place, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][place : place + 1] = [] if new is None else [new]
                break
    state = inner.state.pop(old, None)
    if state is None or new is None or carry is None:
        return
    inner.state[new] = {
        key: carry(key, value) if torch.is_tensor(value) and value.dim() > 0 else value for key, value in state.items()
    }
