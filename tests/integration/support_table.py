"""The tables of docs/support.md, from the cases."""

from __future__ import annotations

from integration.support_cases import ADAPTERS, INITIALISATIONS, LAYERS, MODELS, Refused, Works
from integration.training_cases import CHECKPOINTS, OPTIMIZERS, PROCESSES, TRAINING, TROUBLE, Optimizers, Shown

SECTIONS: dict[str, list[Works | Refused | Optimizers | Shown]] = {
    "Layers": [*LAYERS],
    "Adapters": [*ADAPTERS],
    "Initialisations": [*INITIALISATIONS],
    "Models": [*MODELS],
    "Training": [*TRAINING],
    "Several processes": [*PROCESSES],
    "Optimisers": [*OPTIMIZERS],
    "Checkpoints": [*CHECKPOINTS],
    "Trouble": [*TROUBLE],
}


def table(section: str) -> str:
    """The table of one section, as it stands in docs/support.md."""
    lines = [f"| {section} | | notes |", "|---|---|---|"]
    lines += [f"| {case.thing} | {case.outcome} | {case.how} |" for case in SECTIONS[section]]
    return "\n".join(lines) + "\n"
