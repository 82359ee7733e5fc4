"""The sentences about a comparison: its conclusion, which a report begins with, and its limits, beside the numbers.

A table of means invites more belief than it earns; each check of `caveats` looks for one way in which it would mislead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from glora.experiments.config import ALLOCATION_SETTINGS
from glora.experiments.data.metric import Metric
from glora.experiments.methods.registry import METHODS, split_variant
from glora.experiments.report.cells import metric_unit
from glora.experiments.report.statistics import SEEDS_FOR_AN_INTERVAL, PairedDifference
from glora.experiments.report.summary import REFERENCE, GroupSummary, MethodSummary
from glora.messages import pluralize

UNEQUAL_PARAMETERS = 0.01
"""Share of lora's adapter parameters from which a difference is pointed out."""

Compared = list[tuple[MethodSummary, PairedDifference]]


def conclusion(group: GroupSummary) -> tuple[str, ...]:
    """Return sentences: the methods compared, their differences, the smallest that could be seen, and what learned nothing."""
    if not group.methods:
        return ()
    return (_compared(group), *_differences(group), *_learned_nothing(group))


def listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _compared(group: GroupSummary) -> str:
    task, model = group.names
    run, metric = group.finished[0], group.primary_metric
    examples = run.examples.get(run.main_split or "")
    judged = f", judged by {metric.title} on {pluralize(examples, 'example')}" if metric and examples else ""
    names, seeds = [method.label for method in group.methods], {len(method.seeds) for method in group.methods}
    count = pluralize(max(seeds), "seed") if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
    verb = "was" if len(names) == 1 else "were"
    return (
        f"{listed(names)} {verb} trained with {model} on {task} ({count}{' each' if len(names) > 1 else ''}){judged}."
    )


def _differences(group: GroupSummary) -> Iterator[str]:
    metric, reference = group.primary_metric, group.reference_label
    found = [(method, found) for method in group.methods if (found := group.primary_difference(method))]
    if metric is None or not found:
        return
    few = [method.label for method, difference in found if len(difference.seeds) < SEEDS_FOR_AN_INTERVAL]
    better = "higher" if metric.higher_is_better else "lower"
    shown: dict[str, Compared] = {"better": [], "worse": []}
    unknown: Compared = []
    for method, difference in found:
        if difference.direction:
            shown["better" if difference.direction == better else "worse"].append((method, difference))
        elif difference.smallest is not None:
            unknown.append((method, difference))
    for word, methods in shown.items():
        if methods:
            yield f"{word.capitalize()} than {reference}: {'; '.join(_by_how_much(m, d, metric) for m, d in methods)}."
    if unknown:
        seen = max(difference.smallest or 0 for _, difference in unknown)
        names = listed([method.label for method, _ in unknown])
        seen_by = f"a difference of {_amount(seen, metric)} would have been seen with 80 % power"
        yield f"No difference to {reference} was shown for {names}; {seen_by}."
    if few:
        yield (
            f"Fewer than {SEEDS_FOR_AN_INTERVAL} seeds conclude nothing about {listed(few)} against {reference}: "
            "repeat the command with more `--seeds`."
        )


def _by_how_much(method: MethodSummary, difference: PairedDifference, metric: Metric) -> str:
    size = f" at {100 * method.adapter_share:.0f} % of its adapter parameters" if method.adapter_share else ""
    low, high = sorted((abs(difference.low or 0), abs(difference.high or 0)))
    interval = f"{metric_unit(metric).write(low)} to {metric_unit(metric).write(high)}"
    return f"{method.label} by {_amount(abs(difference.mean), metric)} ({interval}){size}"


def _amount(value: float, metric: Metric) -> str:
    return f"{metric_unit(metric).write(value)}{' points' if metric.unit else ''}"


def _learned_nothing(group: GroupSummary) -> Iterator[str]:
    metric = group.primary_metric
    failed = {method.label: seeds for method in group.methods if (seeds := group.not_above_baseline(method))}
    if metric is None or not failed:
        return
    runs = listed([f"{label} (seed {', '.join(map(str, seeds))})" for label, seeds in failed.items()])
    level = metric_unit(metric).write(group.baseline[metric.key])
    yield f"Learned nothing: {runs}, not above the {level}{metric.unit and ' ' + metric.unit} of the majority class."


def caveats(group: GroupSummary) -> list[str]:
    """Return the limits of the differences in this group, as markdown sentences."""
    if not group.methods:
        return []
    return [
        *_about_seeds(group),
        *_about_budgets(group),
        *_about_allocations(group),
        *_about_learning_rates(group),
        *_about_sameness(group),
        *_about_values(group),
    ]


def _about_seeds(group: GroupSummary) -> Iterator[str]:
    fewest = min(len(method.seeds) for method in group.methods)
    if fewest >= SEEDS_FOR_AN_INTERVAL:
        yield (
            f"Fewest seeds of a method: {fewest}. A seed changes initialisation and data order, not the "
            "data, so spreads and intervals say nothing about other data. Each interval is separate, none "
            "is corrected for the number of comparisons."
        )
    if len({method.seeds for method in group.methods}) > 1:
        listed = "; ".join(f"{method.label}: {', '.join(map(str, method.seeds))}" for method in group.methods)
        yield (
            f"The methods have different seeds ({listed}): their means are over different runs. Differences "
            "and time ratios use the common seeds only."
        )


def _about_budgets(group: GroupSummary) -> Iterator[str]:
    if group.reference is None:
        yield f"There is no finished run of `{REFERENCE}`, so nothing is relative to it."
    for method in group.methods:
        share = None if method.is_reference else method.adapter_share
        reference = group.compared_with(method)
        if share == 0:
            yield f"{method.label} has no adapter: what it trains is compared with {reference} in all parameters."
        elif share is not None and abs(share - 1) >= UNEQUAL_PARAMETERS:
            yield (
                f"The sizes differ: {method.label} ends with {abs(share - 1):.0%} "
                f"{'more' if share > 1 else 'fewer'} adapter parameters than {reference}."
            )


def _about_allocations(group: GroupSummary) -> Iterator[str]:
    for method in group.methods:
        known = METHODS.get(split_variant(method.method)[0])
        if known is None or not known.settings >= ALLOCATION_SETTINGS:
            continue
        kept = [run for run in method.runs if run.reallocated_at is None and run.ranks == run.initial_ranks]
        if kept:
            yield (
                f"{method.label} kept the ranks that it began with (seed {', '.join(str(run.config.seed) for run in kept)}): "
                "nothing was allocated, so this is LoRA of the starting rank. The run's log says why."
            )


def _about_learning_rates(group: GroupSummary) -> Iterator[str]:
    """Rates that suit LoRA do not suit every method, and a comparison at one rate may favour one."""
    for method in group.methods:
        known = METHODS.get(split_variant(method.method)[0])
        usual = known.usual_rates if known else None
        rate = method.runs[0].config.learning_rate
        if usual is not None and not usual[0] <= rate <= usual[1]:
            yield (
                f"{method.label} was trained with a learning rate of {rate:g}; usual for it are {usual[0]:g} to {usual[1]:g}. "
                "Compare methods at rates that were tuned for each, as `glora search` does."
            )


def _about_sameness(group: GroupSummary) -> Iterator[str]:
    for method in group.methods:
        if method.other_settings:
            yield (
                f"{method.label} is compared with {group.compared_with(method)} under other settings "
                f"({', '.join(method.other_settings)}): its differences and relative time are those of the settings as well."
            )
    runs = group.finished
    if len({run.provenance.data_fingerprint for run in runs} - {None}) > 1:
        yield "The runs did not all see the same data; they are paired only where they did."
    if len({run.provenance.machine for run in runs}) > 1:
        yield "The runs were made on different machines; time ratios pair runs of one machine only."
    commands = {run.provenance.process_started_at for run in runs}
    if len(commands) > 1:
        yield (
            "The runs were not all made by one command; time ratios pair runs of one command only, where one follows "
            "the other on the same machine."
        )
    if None in commands:
        yield "Some records are too old to say which command made them; their times may not have been taken side by side."
    versions = [run.provenance.versions for run in runs]
    changed = sorted({name for found in versions for name in found if len({other.get(name) for other in versions}) > 1})
    if changed:
        yield f"The runs were made with different versions of {', '.join(changed)}."
    commits = {run.provenance.git.commit for run in runs if run.provenance.git}
    if len(commits) > 1:
        yield f"The runs were made from {len(commits)} different commits of glora."
    if any(run.provenance.git and run.provenance.git.dirty for run in runs):
        yield "At least one run was made from a checkout of glora with uncommitted changes."


def _about_values(group: GroupSummary) -> Iterator[str]:
    broken = [
        f"{method.label} seed {run.config.seed}: {name}"
        for method in group.methods
        for run in method.runs
        for name, value in run.final.items()
        if not math.isfinite(value)
    ]
    if broken:
        yield (
            f"Not a finite number: {'; '.join(broken)}. Either the training diverged or the metric is "
            "undefined there; a mean that contains it is shown as nan."
        )
