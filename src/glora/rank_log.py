"""Norms and ranks in TensorBoard, W&B, MLflow and whatever else a Trainer reports to by `report_to`.

Trainer calls its reporters before the callbacks that a user adds, so a callback cannot add to what they are told; this one
tells them itself, after each of Trainer's own logs and for the same step. It tells nobody else: two numbers for each matrix
would fill the console and the log history in every checkpoint.
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
    """Tells a Trainer's reporters the norms and the ranks.

        trainer = Trainer(..., TrainingArguments(..., report_to="tensorboard"), callbacks=[RankAllocationCallback()])
        trainer.add_callback(RankLogCallback(trainer))

    At each of Trainer's own logs (`logging_steps`) that is not one of an evaluation:

        glora/norm/<module>        g_k, while it is being averaged
        glora/rank/<module>        r_k, 0 where the adapter was taken out
        glora/total_rank, glora/smallest_rank, glora/largest_rank, glora/adapter_parameters

    Reporters put `train/` before these names, as before all of Trainer's. Reading the norms waits for the device, once a
    log, where Trainer has just waited for the loss; nothing is read between logs. It is not on by default, because it is two
    curves for each matrix.

    Args:
        trainer: the Trainer whose reporters are told. One of its callbacks must be a RankAllocationCallback.

    Raises:
        ValueError: at the start of training, if there is no RankAllocationCallback.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._last_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See that there is something to tell, and somebody."""
        self._last_step = None
        self.check()
        if not self._reporters():
            logger.warning(
                "RankLogCallback has nobody to tell: Trainer reports to nothing; give TrainingArguments(report_to=...), such "
                "as 'tensorboard'"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the reporters, once a step."""
        of_an_evaluation = any(name.startswith(("eval_", "test_")) for name in logs or ())
        if of_an_evaluation or state.global_step == self._last_step:
            return
        self._last_step = state.global_step
        reporters = self._reporters()
        values = self.values() if reporters else {}
        for reporter in reporters if values else ():
            reporter.on_log(args, state, control, logs=dict(values), **kwargs)

    def check(self) -> None:
        """Refuse to watch a training in which no ranks are allocated. A subclass that has its own values needs none.

        Raises:
            ValueError: there is no RankAllocationCallback.
        """
        if self._allocation() is None:
            raise ValueError(
                "RankLogCallback found no RankAllocationCallback among the callbacks of its Trainer; give "
                "Trainer(callbacks=[RankAllocationCallback()]), and RankLogCallback that same Trainer"
            )

    def values(self) -> dict[str, float]:
        """What is told: name -> value. A subclass may tell something else."""
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
    """Norms and ranks by the names under which they are logged.

    Args:
        ranks: module name -> r_k; without any, there is nothing to log.
        parameters: of the adapter.
        norms: module name -> g_k, as far as they are being averaged.
    """
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
