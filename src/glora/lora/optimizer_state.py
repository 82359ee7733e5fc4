"""A parameter's state in an optimizer, carried to another shape.

The parameter stays the same object in its place of its group, at rank 0 as well: schedulers notice nothing, and a saved state
fits an optimizer that is made from the model as the run began. State of each element follows the columns that are kept. The
state of a new column depends on its kind:

    first moment   0. A running mean of gradients of which there were none.
    second moment  the mean of the kept columns'. Zero would be wrong: Adam's bias correction is long past when the
                   column is added, and with v = 0 its steps are (1-β1^t)/√(1-β2^t) times the normal, which is 3.2
                   at the first, 6.5 at the tenth and 3.2 still at the hundredth.
    step size      the mean of the kept columns' (Rprop adapts one for each element).
    average        the new column itself (ASGD's running mean of the weights, the second sequence of schedule-free's).

Eight- and four-bit states are carried in float32: the optimizers that keep them take that for a small parameter's state.

Any other state cannot follow, and is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

Kind = Literal["first moment", "second moment", "average"]

# Every per-element state of the optimizers that torch ships, and of others that Trainer offers. A step size is treated as a
# second moment is: by its mean.
STATE_KINDS: dict[str, Kind] = {
    "exp_avg": "first moment",  # Adam, AdamW, NAdam, RAdam, Adamax, Adafactor
    "momentum_buffer": "first moment",  # SGD, RMSprop, Muon
    "update_avg": "first moment",  # a mean of updates, see MEANS_OF_UPDATES
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
    "z": "average",  # schedule-free: where the steps are made; the weights lie between z and the mean of all z
    "kahan_comp": "first moment",  # optimi: what rounding to bfloat16 has lost
}

# Adafactor keeps means over one of the last two dimensions of a matrix; over the ranks, there is no column to follow.
MEAN_OVER: dict[str, int] = {"row_var": -1, "col_var": -2, "exp_avg_sq_row": -1, "exp_avg_sq_col": -2}

# What bitsandbytes calls state1 and state2, by its name for the algorithm.
BITSANDBYTES_STATES: dict[str, dict[str, str]] = {
    "adam": {"state1": "exp_avg", "state2": "exp_avg_sq"},
    "ademamix": {"state1": "exp_avg", "state2": "exp_avg_sq"},  # state1 stacks two running means
    "lamb": {"state1": "exp_avg", "state2": "exp_avg_sq"},
    "lion": {"state1": "exp_avg"},
    "momentum": {"state1": "momentum_buffer"},
    "lars": {"state1": "momentum_buffer"},
    "rmsprop": {"state1": "exp_avg_sq"},
    "adagrad": {"state1": "sum"},
}
# These two average updates, divided by their root mean square already, under the names that others give to means of gradients.
MEANS_OF_UPDATES = {("RMSprop", "momentum_buffer"), ("Adafactor", "exp_avg")}

# An eight-bit state of bitsandbytes: codes in state1, their values in qmap1, and a scale for each block of elements in absmax1.
QUANTIZATION = {"absmax1", "qmap1", "absmax2", "qmap2"}
BITSANDBYTES_BLOCK = 256

# They step while gradients are being computed, so there is no moment at which a step's gradients can be read.
STEPS_IN_BACKWARD = ("LayerWiseDummyOptimizer", "Lomo", "AdaLomo")
REMEDY = 'use an optimizer of torch.optim, such as AdamW (optim="adamw_torch")'

# (name of the state, its value) -> that of the successor; built by resize.py, which knows which columns are kept.
Carry = Callable[[str, torch.Tensor], torch.Tensor]


def unwrap_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the torch optimizer inside accelerate's wrapper."""
    while not type(optimizer).__module__.startswith("torch.optim") and isinstance(
        inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer
    ):
        optimizer = inner
    return optimizer


def held_by(optimizer: torch.optim.Optimizer) -> set[torch.Tensor]:
    """Return the parameters that the optimizer updates."""
    return {parameter for group in unwrap_optimizer(optimizer).param_groups for parameter in group["params"]}


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter] | None = None) -> None:
    """Check that the optimizer's state, as far as it is made, can follow a parameter to another shape.

    Args:
        optimizer: The optimizer.
        parameters: The parameters whose state is checked. Default: all that it holds.

    Raises:
        ValueError: it steps within backward(); it is LBFGS, whose history is one flat vector over all parameters; or it keeps,
            for a parameter, tensors of an unknown name or of another shape, or other objects, or keeps them elsewhere than
            in `optimizer.state`; or another optimizer within it makes the steps, with parameter groups of its own.
    """
    inner = unwrap_optimizer(optimizer)
    name = type(inner).__name__
    if name in STEPS_IN_BACKWARD:
        raise ValueError(f"{name} steps within backward(), before a step's gradients can be read; {REMEDY}")
    if isinstance(inner, torch.optim.LBFGS):
        raise ValueError(
            "LBFGS keeps one flat history over all parameters, which cannot follow a matrix to another rank; use AdamW"
        )
    for other in vars(inner).values():
        if isinstance(other, torch.optim.Optimizer) and not _same_groups(inner, other):
            raise ValueError(
                f"{name} steps by a {type(other).__name__} with other parameter groups, which would keep training the replaced "
                f"matrices; {REMEDY}"
            )
    # not at each matrix that is resized, since it goes through the state of all
    if parameters is None and (named := [key for key in inner.state if not isinstance(key, torch.Tensor)]):
        raise ValueError(
            f"{name} keeps its state under names, such as {named[0]!r}, and not by parameter, where glora could carry it to a "
            f"matrix's new columns; {REMEDY}"
        )
    for group in inner.param_groups:
        for key, value in group.items():
            if isinstance(value, Mapping) and any(isinstance(k, torch.Tensor) for k in value):
                raise ValueError(
                    f"{name} keeps its state in param_groups[...][{key!r}] and not in optimizer.state, where glora could "
                    f"carry it to a matrix's new columns; {REMEDY}"
                )
    held = (parameter for group in inner.param_groups for parameter in group["params"])
    for parameter in held if parameters is None else parameters:
        state = inner.state.get(parameter, {})
        for key, value in state.items():
            if key in QUANTIZATION and _is_quantized(state):
                continue
            if mismatch := _mismatch(_known_name(inner, key), value, parameter):
                raise ValueError(f"{name} keeps {key!r} {mismatch}; {REMEDY}")


def _same_groups(optimizer: torch.optim.Optimizer, other: torch.optim.Optimizer) -> bool:
    lists = [[group["params"] for group in one.param_groups] for one in (optimizer, other)]
    return len(lists[0]) == len(lists[1]) and all(mine is theirs for mine, theirs in zip(*lists))


def _mismatch(key: str, value: object, parameter: nn.Parameter) -> str:
    """Return why a state cannot follow; empty if it can."""
    if value is None or isinstance(value, bool | int | float | str):
        return ""
    if not isinstance(value, torch.Tensor):
        return f"(a {type(value).__name__}) for a parameter, which glora cannot carry to another shape"
    if not _per_element(value, key):
        return ""
    shape = f"of shape {tuple(value.shape)}"
    if key not in STATE_KINDS:
        return f"{shape} for a parameter, and glora does not know what a new column should start with there"
    if key not in MEAN_OVER and value.shape[-parameter.dim() :] != parameter.shape:
        return (
            f"{shape} for a parameter of shape {tuple(parameter.shape)}, which glora cannot carry to another rank (a state "
            "from a checkpoint is loaded after the allocator's)"
        )
    return ""


def _per_element(value: object, key: str = "") -> bool:
    """Return whether a state has one number for each element, or row, of a parameter; at rank 1 that may be a single number."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and (value.numel() > 1 or key in STATE_KINDS)


def _known_name(optimizer: torch.optim.Optimizer, key: str) -> str:
    if (type(optimizer).__name__, key) in MEANS_OF_UPDATES:
        return "update_avg"
    return BITSANDBYTES_STATES.get(getattr(optimizer, "optimizer_name", ""), {}).get(key, key)


def _is_quantized(state: Mapping[str, Any]) -> bool:
    return "absmax1" in state and "qmap1" in state


def _plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state with quantized tensors (bitsandbytes', torchao's) in float32."""
    plain = {key: value.dequantize() if hasattr(value, "codes") else value for key, value in state.items()}
    if not _is_quantized(state):
        return plain
    for number in "12":
        if f"absmax{number}" in plain:
            scale, values, codes = plain.pop(f"absmax{number}"), plain.pop(f"qmap{number}"), plain[f"state{number}"]
            flat = codes.reshape(*scale.shape[:-1], -1)  # AdEMAMix stacks two
            scale = scale.repeat_interleave(BITSANDBYTES_BLOCK, -1)[..., : flat.shape[-1]]
            plain[f"state{number}"] = (values[flat.long()] * scale).view(codes.shape)
    return plain


def skipped_its_step(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether step() changed nothing because a gradient scaler had found inf or NaN. For the step's hooks.

    An optimizer that unscales by itself (AdamW(fused=True)) is called nevertheless, and informed by an attribute.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def changes_nothing(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether every learning rate is 0, so that a step only makes or updates the optimizer's state."""
    return all(float(group.get("lr", 1.0)) == 0 for group in optimizer.param_groups)


def per_element(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors in a parameter's state that have a number for each of its elements, or rows."""
    inner = unwrap_optimizer(optimizer)
    return [value for key, value in state.items() if _per_element(value, _known_name(inner, key))]


def carried_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, carry: Carry) -> dict[str, Any]:
    """Return the optimizer's state of a parameter, carried to another shape; empty if there is none."""
    inner = unwrap_optimizer(optimizer)
    return {
        key: _carried(known, value, parameter.dim(), carry) if _per_element(value, known) else value
        for key, value in _plain_state(inner.state.get(parameter, {})).items()
        for known in (_known_name(inner, key),)
    }


def set_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, state: dict[str, Any]) -> None:
    """Give a parameter this state in the optimizer, or none."""
    states = unwrap_optimizer(optimizer).state
    states.pop(parameter, None)
    if state:
        states[parameter] = state


def replace_parameter(
    optimizer: torch.optim.Optimizer | None, old: nn.Parameter, new: nn.Parameter | None, carry: Carry | None = None
) -> None:
    """Put `new` where `old` was, with its state; None takes `old` out of its group. For FSDP2 alone.

    A parameter that the optimizer does not hold (one that is frozen) is left alone.
    """
    if optimizer is None:
        return
    inner = unwrap_optimizer(optimizer)
    for group in inner.param_groups:
        for place, parameter in enumerate(group["params"]):
            if parameter is old:
                group["params"][place : place + 1] = [] if new is None else [new]
                break
    if new is not None and carry is not None:
        set_state(inner, new, carried_state(inner, old, carry))
    inner.state.pop(old, None)


def _carried(key: str, value: torch.Tensor, dimensions: int, carry: Carry) -> torch.Tensor:
    if value.dim() > dimensions:  # several states of the parameter's shape in one
        return torch.stack([carry(key, one) for one in value])
    return carry(key, value)
