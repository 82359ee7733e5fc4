"""The fixtures of a planned search and its storage."""

from unit.experiments.search.plan_case import plan, storage  # noqa: F401
