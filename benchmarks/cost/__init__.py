"""One idea: what a step costs, variant beside variant in one process. docs/cost.md says how it is measured."""
