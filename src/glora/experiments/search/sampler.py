"""How a search chooses: every combination or TPE, and the median rule.

It is the same for every method, and the same again when a search is resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from glora.experiments.search.shared_trials import SLOT
from glora.messages import pluralize

RANDOM_TRIALS = 10
"""Trials before TPE has seen enough to choose, at most half of all; Optuna's default."""

TRIALS_BEFORE_PRUNING = 5
"""Trials that are trained to their end before one is stopped early (Optuna's default); at most a third of all, at least 2."""


class SlotSeededTPE(BaseSampler):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), seeded anew for each trial by its number.

    A sampler that is seeded once draws the same first values in every process that shares a study, and again in a process
    that resumes it. With a seed for each trial, what is drawn depends on the trial's number and on the trials that are
    finished, whoever draws it. Methods whose searches have one seed begin with the same values of the settings they share.

    Args:
        seed: of the search.
        trials: number of trials of the study.
    """

    def __init__(self, seed: int, trials: int) -> None:
        self._seed = seed
        self._random_trials = max(1, min(RANDOM_TRIALS, trials // 2))
        self._sampler = self._seeded("")

    @property
    def description(self) -> str:
        """For the report."""
        return f"TPE, seed {self._seed}, the first {self._random_trials} at random"

    def _seeded(self, slot: object) -> TPESampler:
        digest = hashlib.sha256(f"{self._seed} {slot}".encode()).digest()
        return TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=self._random_trials)

    @override
    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler = self._seeded(trial.user_attrs.get(SLOT, trial.number))
        self._sampler.before_trial(study, trial)

    @override
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(study, trial)

    @override
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    @override
    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    @override
    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)

    @override
    def reseed_rng(self) -> None:
        """Nothing to do: every trial has a seed of its own."""


class EveryCombination(BaseSampler):
    """Each combination of a study's choices once, whichever process draws it; for a search that has no more than trials.

    Drawn at random, four learning rates in four trials would leave one out more often than not.

    Args:
        combinations: parameter -> value, as Optuna keeps it, for the first trial, the second and so on.
    """

    def __init__(self, combinations: Sequence[Mapping[str, Any]]) -> None:
        self._combinations = combinations

    @property
    def description(self) -> str:
        """For the report."""
        return (
            f"each of the {len(self._combinations)} combinations once" if len(self._combinations) > 1 else "one trial"
        )

    @override
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    @override
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    @override
    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._combinations[slot_number(trial.user_attrs[SLOT])][param_name]


def slot_name(number: int) -> str:
    """The slot of a study's trial, from 0."""
    return f"trial {number + 1}"


def slot_number(name: str) -> int:
    """The other way round."""
    return int(name.removeprefix("trial ")) - 1


def median_pruner(trials: int) -> MedianPruner:
    """Ends a trial whose best epoch so far is below the median of the others at the same epoch (Golovin et al. 2017).

    Hyperband would end more of them sooner, but it judges a trial only against those of its bracket and gives TPE only
    those to learn from; a search of ten to fifty trials over a few epochs has too few for that.
    """
    return MedianPruner(n_startup_trials=_trials_before_pruning(trials))


def describe_pruner(trials: int) -> str:
    """For the report and the study's terms."""
    return f"median rule after {pluralize(_trials_before_pruning(trials), 'trial')}"


def _trials_before_pruning(trials: int) -> int:
    return max(2, min(TRIALS_BEFORE_PRUNING, trials // 3))
