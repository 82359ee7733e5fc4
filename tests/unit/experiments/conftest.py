"""The fixture of a planned comparison."""

from unit.experiments.plan_case import plan  # noqa: F401
