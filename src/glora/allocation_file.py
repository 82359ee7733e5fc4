"""What an allocation did, beside the adapter: allocation.json for programs, a section of the model card for people.

PEFT needs neither; the adapter's own configuration has its ranks.
"""

from __future__ import annotations

import json
import os
import re
from importlib.metadata import version
from pathlib import Path

from glora._version import __version__
from glora.allocator import RankAllocator
from glora.messages import pluralize

FILE_NAME = "allocation.json"
MODEL_CARD = "README.md"
BEGIN, END = "<!-- glora: begin -->", "<!-- glora: end -->"


def save_allocation(allocator: RankAllocator, directory: str | Path) -> Path:
    """Write allocation.json into a folder, and a section into its model card if it has one.

    RankAllocationCallback does so for each checkpoint; after `model.save_pretrained(folder)` of one's own, call it for that
    folder. Writing again replaces what was written.

    Args:
        allocator: The allocator of the adapter that is saved.
        directory: The folder with the adapter; made if it does not exist.

    Returns:
        The path of allocation.json: a version, the configuration, `total_rank`, `parameters` before and after, `reallocation`
        (null before it), package versions, and for each matrix `rank`, `initial_rank`, `shape` (d_out, d_in) and `norm`, the
        moving average g_k (null where there was no adapter to measure).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    adapter, norms = allocator.adapter, allocator.norms
    initial = sum(adapter.initial_ranks[name] * matrix.cost for name, matrix in adapter.matrices.items())
    content = {
        "version": 1,
        "config": allocator.config.to_dict(),
        "total_rank": allocator.total_rank,
        "parameters": {"before": initial, "after": allocator.parameters},
        "reallocation": None if allocator.reallocation is None else vars(allocator.reallocation),
        "versions": {"glora": __version__} | {name: version(name) for name in ("peft", "transformers", "torch")},
        "matrices": {
            name: {
                "rank": matrix.rank,
                "initial_rank": adapter.initial_ranks[name],
                "shape": matrix.shape,
                "norm": norms.get(name),
            }
            for name, matrix in adapter.matrices.items()
        },
    }
    path = directory / FILE_NAME
    _replace(path, json.dumps(content, indent=1) + "\n")
    card = directory / MODEL_CARD
    if card.is_file():
        _replace(card, _with_section(card.read_text(encoding="utf-8"), _section(allocator, initial)))
    return path


def _section(allocator: RankAllocator, parameters_before: int) -> str:
    ranks, config = allocator.ranks, allocator.config
    if not allocator.allocated:
        happened = f"The warm-up has {allocator.steps} of {config.warmup_steps} steps; the ranks are still uniform."
    else:
        steps = allocator.steps if allocator.reallocation is None else allocator.reallocation.step
        by = f"gradient norm (signal `{config.signal}`)"
        happened = (
            f"After {pluralize(steps, 'step')} of warm-up the ranks of {pluralize(len(ranks), 'matrix')}, "
            f"{sum(ranks.values()):,} in all, were shared out by {by}, under the {config.budget} budget: "
            f"{min(ranks.values())} to {max(ranks.values())} a matrix, "
            f"{sum(r == 0 for r in ranks.values())} without an adapter; {parameters_before:,} adapter parameters became "
            f"{allocator.parameters:,}."
        )
    return (
        f"{BEGIN}\n## Rank allocation\n\nThe ranks of this LoRA adapter were allocated by GLoRA {__version__}. {happened} "
        f"It is a plain PEFT LoRA adapter and loads without glora. `{FILE_NAME}` has each matrix's rank and norm.\n{END}\n"
    )


def _with_section(card: str, section: str) -> str:
    old = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "\n?", re.DOTALL)
    if old.search(card):
        return old.sub(lambda _: section, card)
    return card.rstrip("\n") + "\n\n" + section


def _replace(path: Path, text: str) -> None:
    """Write all of a file or none of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
