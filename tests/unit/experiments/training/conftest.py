"""The fixture of a run's settings."""

from unit.experiments.training.run_case import config  # noqa: F401
