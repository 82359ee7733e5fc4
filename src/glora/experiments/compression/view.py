"""A cut as people read it: ranks by kind of matrix, the curve of energy against size, and that curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import altair as alt
from rich.table import Table

from glora.compress import CompressibleAdapter, Compression
from glora.experiments.number_format import printable
from glora.experiments.records.store import write_whole
from glora.experiments.report.chart_style import LIGHT, data, png

SHARES = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0625)
"""Sizes of the curve, as shares of the parameters (of the ranks, under that budget)."""
STEPS = 40
"""Points of the picture's lines."""

Cut = Callable[[float], Compression]


def ranks_table(made: Compression, costs: Mapping[str, int]) -> Table:
    """Return ranks and parameters before and after, a row for each kind of matrix: the last part of its name."""
    table = Table(box=None, pad_edge=False)
    for header in ("matrices", "number", "rank before", "rank after", "mean", "parameters before", "after"):
        table.add_column(header, justify="left" if header == "matrices" else "right")
    kinds: dict[str, list[str]] = {}
    for name in made.ranks:
        kinds.setdefault(name.rpartition(".")[2], []).append(name)
    if len(kinds) > 1:
        kinds["all"] = list(made.ranks)
    for kind, names in kinds.items():
        after = [made.ranks[name] for name in names]
        before = [made.ranks_before[name] for name in names]
        sizes = (sum(rank * costs[name] for rank, name in zip(ranks, names)) for ranks in (before, after))
        mean = f"{sum(after) / len(after):.1f}"
        table.add_row(kind, f"{len(names)}", _range(before), _range(after), mean, *(f"{size:,}" for size in sizes))
    return table


def plan_table(
    cut: Cut, adapter: CompressibleAdapter, asked: Compression | None = None, one_rank: Cut | None = None
) -> Table:
    """Return the energy that each size keeps, with a mark at the size that was asked for.

    Args:
        cut: Share of the parameters -> ranks.
        adapter: The adapter.
        asked: The size that was asked for.
        one_rank: The same by one rank for all matrices, to see what unequal ranks gain: shown where it has a rank for the size.
    """
    table = Table(box=None, pad_edge=False)
    headers = ("size", "parameters", "tensors", "mean\nrank", "without\nadapter", "energy\nkept")
    for header in (*headers, *(() if one_rank is None else ("by one\nrank",))):
        table.add_column(header, justify="right", vertical="bottom")
    curve = {tuple(made.ranks.values()): made for made in _curve(cut, SHARES)}  # bounds make several shares one size
    if asked is not None:
        table.add_column("", no_wrap=True)
        curve[tuple(asked.ranks.values())] = asked
    even = [] if one_rank is None else _curve(one_rank, SHARES)
    for made in sorted(curve.values(), key=lambda made: -made.parameters):
        ranks = list(made.ranks.values())
        table.add_row(
            f"{100 * made.parameters / made.parameters_before:.3g} %",
            f"{made.parameters:,}",
            size_text(file_size(adapter, made.ranks)),
            f"{sum(ranks) / len(ranks):.1f}",
            f"{ranks.count(0)}",
            f"{100 * made.energy:.2f} %",
            *([] if one_rank is None else [_energy_of_size(even, made.parameters)]),
            *(["<- asked"] if made is asked else []),
        )
    return table


def _energy_of_size(cuts: Sequence[Compression], parameters: int) -> str:
    """Return the energy of the cut that is as large, to 2 %; empty if there is none."""
    alike = (f"{100 * made.energy:.2f} %" for made in cuts if math.isclose(made.parameters, parameters, rel_tol=0.02))
    return next(alike, "")


def save_picture(path: Path, cuts: Mapping[str, Cut], title: str) -> None:
    """Draw the energy against the size as a PNG, a line for each way to cut."""
    rows = [
        {"series": name, "share": 100 * made.parameters / made.parameters_before, "energy": 100 * made.energy}
        for name, cut in cuts.items()
        for made in _curve(cut, [step / STEPS for step in range(1, STEPS + 1)])
    ]
    color = alt.Color(
        "series:N",
        title=None,
        scale=alt.Scale(domain=list(cuts), range=list(LIGHT["series"][: len(cuts)])),
        legend=alt.Legend(orient="top"),
    )
    lines = (
        alt.Chart(data(rows))
        .mark_line(strokeWidth=2, point={"size": 20})
        .encode(
            x=alt.X("share:Q", title="parameters of the new adapter (%)", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("energy:Q", title="energy of the update kept (%)", scale=alt.Scale(zero=False)),
            color=color,
        )
    )
    heading = alt.TitleParams("Energy kept against size", subtitle=[printable(title)], offset=12)
    shown = lines.properties(width=480, height=280, title=heading)
    write_whole(path, png(shown.to_dict()))


def written_text(adapter: CompressibleAdapter, made: Compression) -> str:
    """Return the size of the tensors before and after, and the cut in one line."""
    before, after = (size_text(file_size(adapter, ranks)) for ranks in (made.ranks_before, made.ranks))
    return f"tensors: {before} before, {after} after\n{made}"


def file_size(adapter: CompressibleAdapter, ranks: Mapping[str, int]) -> int:
    """Return the bytes of the tensors at these ranks: the factors, and what is saved beside them; a file also has a header."""
    matrices = adapter.saved.matrices
    factors = sum(rank * matrices[name].cost * matrices[name].A.element_size() for name, rank in ranks.items())
    return factors + sum(tensor.nbytes for tensor in adapter.saved.others.values())


def size_text(count: int) -> str:
    """Return a number of bytes in the unit of file managers."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _curve(cut: Cut, shares: Sequence[float]) -> list[Compression]:
    """Return the cuts of several sizes, without those below the smallest that is possible."""
    whole = cut(max(shares))  # raises what is wrong with any size
    cuts = (whole if share == max(shares) else or_none(cut, share) for share in shares)
    return [made for made in cuts if made is not None]


def or_none(cut: Cut, share: float) -> Compression | None:
    """Return a cut; None if the share pays for no direction, or not for those that must be kept."""
    try:
        return cut(share)
    except ValueError:
        return None


def _range(ranks: Sequence[int]) -> str:
    low, high = min(ranks), max(ranks)
    return f"{low}" if low == high else f"{low} to {high}"
