"""Norms and ranks in TensorBoard, W&B, MLflow and every other reporter of a Trainer (`report_to`).

Trainer calls its reporters before the callbacks that a user adds, so a callback cannot add to their logs. RankLogCallback calls
them itself, after each of Trainer's own logs and for the same step. It logs nowhere else: two numbers for each matrix would
fill the console and the log history in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from glora.messages import get_logger
from glora.trainer_callback import RankAllocationCallback

logger = get_logger()


class RankLogCallback(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Log norms and ranks to a Trainer's reporters.

        trainer = Trainer(..., TrainingArguments(..., report_to="tensorboard"), callbacks=[RankAllocationCallback()])
        trainer.add_callback(RankLogCallback(trainer))

    It logs at each of Trainer's own logs (`logging_steps`), except those of an evaluation:

        glora/norm/<module>        g_k, during a warm-up
        glora/rank/<module>        r_k, 0 where the adapter was taken out
        glora/total_rank, glora/smallest_rank, glora/largest_rank, glora/adapter_parameters

    Reporters put `train/` before these names, as before all of Trainer's. Reading the norms waits for the device once a log,
    where Trainer has just waited for the loss. It is not on by default, because it makes two curves for each matrix.

    Args:
        trainer: The Trainer. One of its callbacks must be a RankAllocationCallback.

    Raises:
        ValueError: at the start of training, if there is no RankAllocationCallback.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._last_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that there are values and reporters."""
        self._last_step = None
        self.check()
        if not self._reporters():
            logger.warning(
                "RankLogCallback found no reporter; set TrainingArguments(report_to=...), for example to 'tensorboard'"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log to the reporters, once a step."""
        evaluation = any(name.startswith(("eval_", "test_")) for name in logs or ())
        if evaluation or state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        reporters = self._reporters()
        values = self.values() if reporters else {}
        for reporter in reporters if values else ():
            reporter.on_log(args, state, control, logs=dict(values), **kwargs)

    def check(self) -> None:
        """Check that ranks are allocated in this training. A subclass with other values may override it."""
        if self._allocation() is None:
            raise ValueError(
                "RankLogCallback found no RankAllocationCallback; make its Trainer with "
                "callbacks=[RankAllocationCallback()]"
            )

    def values(self) -> dict[str, float]:
        """Return the values to log, by name. A subclass may log others."""
        allocation = self._allocation()
        allocator = allocation.allocator if allocation is not None else None
        if allocator is None:
            return {}
        norms = allocator.norms if allocator.recording else {}
        return rank_log(allocator.ranks, allocator.parameters, norms)

    def _allocation(self) -> RankAllocationCallback | None:
        callbacks = self._trainer.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, RankAllocationCallback)), None)

    def _reporters(self) -> list[TrainerCallback]:
        kinds = tuple(INTEGRATION_TO_CALLBACK.values())
        return [callback for callback in self._trainer.callback_handler.callbacks if isinstance(callback, kinds)]


def rank_log(ranks: Mapping[str, int], parameters: int, norms: Mapping[str, float]) -> dict[str, float]:
    """Return norms and ranks by the names under which they are logged; nothing without ranks."""
    if not ranks:
        return {}
    return {
        **{f"glora/norm/{name}": float(norm) for name, norm in norms.items()},
        **{f"glora/rank/{name}": int(rank) for name, rank in ranks.items()},
        "glora/total_rank": sum(ranks.values()),
        "glora/smallest_rank": min(ranks.values()),
        "glora/largest_rank": max(ranks.values()),
        "glora/adapter_parameters": parameters,
    }
