"""Show a search: its plan, and what its studies found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from glora.experiments.data.metric import metric_of
from glora.experiments.estimate import Pace
from glora.experiments.number_format import MISSING, distinct_names, settings_text
from glora.experiments.plan_view import facts_grid, time_of
from glora.experiments.search.plan import MethodSearch, SearchPlan, how_chosen
from glora.experiments.search.trials import StudyOutcome
from glora.messages import pluralize

BETTER = {"maximize": "the higher the better", "minimize": "the lower the better"}


def describe_search(plan: SearchPlan, storage: str, paces: Sequence[Pace] = ()) -> RenderableType:
    """Show the ranges of each method, the examples, the trials, the final runs, and the database without its password.

    Args:
        plan: the search.
        storage: its database, without the password.
        paces: of the trials of each model and data set, from which their time is estimated.
    """
    studies = plan.studies
    rows, (tasks, models) = [("search", plan.name)], _names(studies)
    for study in {(s.base.task, s.base.model): s for s in studies}.values():
        train, tuning = (study.task.example_counts[split] for split in ("train", "tuning"))
        rows.append(
            (
                "tuned on",
                f"{tasks[study.base.task]} with {models[study.base.model]}: {train:,} of the training examples to "
                f"train on, {pluralize(tuning, 'other')} to judge by ({study.metric}, {BETTER[study.direction]}); "
                f"{pluralize(study.schedule.total_steps, 'step')} a trial",
            )
        )
        rows += [("", study.task.reading)] if study.task.reading else []
    numbers = [len(study.trials) for study in studies]
    studied = pluralize(len(studies), "study")
    each = f" = {studied} × {numbers[0]}" if len(set(numbers)) == 1 else f" in {studied}"
    runs = len(plan.pairs) * len(plan.methods) * len(plan.seeds)
    rows += [
        ("trials", f"{sum(numbers)}{each}"),
        ("", f"{how_chosen(studies)}; {studies[0].pruner}; trained with seed {studies[0].base.seed}"),
        (
            "runs",
            f"then {pluralize(runs, 'run')} with the best settings: {', '.join(plan.methods)} with "
            f"{'seed' if len(plan.seeds) == 1 else 'seeds'} {', '.join(map(str, plan.seeds))} on the whole training data, "
            "evaluated on the task's own splits",
        ),
        *_times(plan, paces),
        ("storage", storage),
        ("output", str(plan.output)),
    ]
    return Group(facts_grid(rows), "", _spaces(plan))


def _times(plan: SearchPlan, paces: Sequence[Pace]) -> Iterator[tuple[str, str]]:
    tasks, models = _names(plan.studies)
    for pair, pace in zip(plan.pairs, paces):
        base = pair.studies[0].base
        steps = sum(len(study.trials) * study.schedule.total_steps for study in pair.studies if study.ranges)
        where = f" on {tasks[base.task]} with {models[base.model]}" if len(plan.pairs) > 1 else ""
        yield "time", f"trials{where}, if none is pruned: {time_of(steps, pace)}"


def _spaces(plan: SearchPlan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("model", "data set", "method", "searched"):
        table.add_column(header, overflow="fold")
    tasks, models = _names([study for pair in plan.pairs for study in pair.studies])
    for pair in plan.pairs:
        for study in pair.studies:
            space = "; ".join(map(str, study.ranges)) or "nothing: it reads none of these settings"
            names = models[study.base.model], tasks[study.base.task], study.method.name
            table.add_row(*names, space)
    return table


def describe_outcomes(outcomes: Sequence[StudyOutcome]) -> Table:
    """Show the best settings of each study."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="Best settings", title_justify="left")
    for header in ("model", "data set", "method", "settings", "in tuning", "trials"):
        table.add_column(header, overflow="fold", no_wrap=header in ("method", "settings"))
    tasks, models = _names([outcome.search for outcome in outcomes])
    for outcome in outcomes:
        search, metric = outcome.search, metric_of(outcome.search.metric)
        value = metric.write(outcome.best.value) if outcome.best else MISSING
        trials = ", ".join(f"{count} {how}" for how, count in outcome.counts.items() if count)
        cells = (models[search.base.model], tasks[search.base.task], search.method.name)
        settings = settings_text(outcome.values).replace(", ", "\n")  # a line each: not to be cut in a narrow terminal
        table.add_row(*cells, settings, f"{metric.header}: {value}", trials)
    return table


def _names(studies: Sequence[MethodSearch]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what data sets and models are called where all of them are shown."""
    tasks, models = (distinct_names(study.base.setting(name) for study in studies) for name in ("task", "model"))
    return tasks, models
