"""Gradient norms over a warm-up: read at each step, averaged once the optimizer has made the step.

A gradient scaler skips steps, and a micro-batch is only accumulated. Neither may enter the average, so `read` keeps the norms
of the last call, and `take` adds them when the optimizer has made its step. A rule that cuts needs no norms: only the steps are
counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glora.config import RankAllocationConfig
from glora.distributed.agreement import Processes
from glora.lora.matrix import LoraMatrix
from glora.messages import get_logger, pluralize, shortened
from glora.scoring.gradient_norms import GradientNorms, NormAverage
from glora.scoring.sketch_ratios import COLUMNS, SketchRatios, measured_steps

logger = get_logger()
PATIENCE = 100  # skipped optimizer steps before the first warning


class NormRecorder:
    """Averages the gradient norms of an adapter's matrices.

    Args:
        matrices: The matrices, all of rank 1 or more. Once one is resized, a new object is needed.
        config: Decides what is measured, when, and how it is averaged; `warmup_steps` is an int.
        processes: The processes that train the model together.
        step: Optimizer steps made so far.
        names: The matrices to average, where a saved state has fewer than there are now.
        recording: Read norms. Otherwise the object only holds an average.

    Attributes:
        average: g_k.
        pending: Norms that were read for a step that the optimizer has not made yet, or None.
        ratios: The measured ratios, unless signal="lora_b".
    """

    def __init__(
        self,
        matrices: Sequence[LoraMatrix],
        config: RankAllocationConfig,
        processes: Processes,
        step: int = 0,
        *,
        names: Sequence[str] | None = None,
        recording: bool = True,
    ) -> None:
        matrices = () if config.cuts else matrices
        norms = GradientNorms(matrices, config.signal)
        self._norms: GradientNorms | None = norms if recording else None
        self._config, self._step = config, step
        self.average = NormAverage(norms.names if names is None else names, config.beta, norms.device)
        self._skipped = NormAverage(norms.names, config.beta, norms.device)
        self.pending: torch.Tensor | None = None
        self.ratios: SketchRatios | None = None
        if recording and matrices and config.signal != "lora_b":
            columns = COLUMNS if config.signal == "delta" else None
            self.ratios = SketchRatios(matrices, norms.device, processes, columns=columns, seed=config.seed)
            self._arm()

    @property
    def recording(self) -> bool:
        """True while norms are averaged."""
        return self._norms is not None

    def read(self) -> None:
        """Read the norms of the gradients as they are now; only the last call before the optimizer's step counts."""
        if self._norms is None:
            return
        if self.pending is not None:
            self._skipped.add(self.pending)
            self.pending = None
            if self._skipped.steps == PATIENCE and self._step == 0:
                logger.warning("%s", self.describe_skipped())
        if self.ratios is not None and self._is_measured:
            self.ratios.measure()
        self.pending = self._norms.read(self.ratios.ratios if self.ratios is not None else None)

    def take(self) -> None:
        """Add the norms of the last `read` to the average: the optimizer has made the step."""
        if self.pending is None:
            raise RuntimeError(
                "optimizer.step() ran without allocator.step() before it, so the ranks would never be allocated; call "
                "allocator.step() between loss.backward() and optimizer.step(), or detach() the earlier allocator"
            )
        self.average.add(self.pending)
        self.pending = None
        self._step += 1
        if self.ratios is not None:
            self.ratios.disarm()
            self._arm()

    def stop(self) -> None:
        """Stop recording, and take the hooks off the layers. The average stays."""
        self._norms = self.pending = None
        if self.ratios is not None:
            self.ratios.disarm()
            self.ratios = None

    def describe_skipped(self) -> str:
        """Describe the gradients that were read without a following optimizer step, as `RankAllocator.describe_skipped`."""
        skipped, found = self._skipped.steps, self._skipped.ever_non_finite
        if self.pending is not None:
            last = torch.isfinite(self.pending).tolist()
            skipped, found = skipped + 1, found or [n for n, ok in zip(self._skipped.names, last) if not ok]
        if not skipped:
            return ""
        where = (
            f"; a gradient scaler skips steps with inf or NaN, which were found in {shortened(found)}" if found else ""
        )
        return f"the gradients were read {pluralize(skipped, 'time')}, and optimizer.step() did not follow{where}"

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        ratios = self.ratios.ratios.tolist() if self.ratios is not None else None
        # NaN, a ratio that was not measured, is not JSON
        measured = None if ratios is None else [None if math.isnan(x) else x for x in ratios]
        return {**self.average.state_dict(), "sketch_ratios": measured, "recording": self.recording}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.average.load_state_dict(state)
        if self.ratios is not None and (measured := state.get("sketch_ratios")) is not None:
            ratios = [math.nan if x is None else x for x in measured]
            self.ratios.ratios.copy_(torch.tensor(ratios))

    @property
    def _is_measured(self) -> bool:
        config = self._config
        if config.signal == "delta_exact":
            return self._step % config.exact_every == 0
        assert isinstance(config.warmup_steps, int)
        since, every = self._step - config.warmup_steps, config.reallocate_every
        left = -since if since < 0 or every is None else every - since % every  # steps to the next reallocation
        return left <= measured_steps(config.beta)

    def _arm(self) -> None:
        if self.ratios is not None and self._is_measured:
            self.ratios.arm(self._step)
