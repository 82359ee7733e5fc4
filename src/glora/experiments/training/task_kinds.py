"""The kinds of tasks by name: what differs between learning a label and learning a written answer when a run is made."""

from __future__ import annotations

from glora.experiments.training.classification import Classification


def find_kind(name: str) -> Classification:
    """Return the kind with this name, "classification" or "generation", which overrides the former."""
    if name == "generation":
        from glora.experiments.training.generative import Generation  # needs TRL, which is optional

        return Generation()
    return Classification()
