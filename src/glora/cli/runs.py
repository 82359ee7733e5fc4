"""The commands that train: show the plan, make the runs, write the report, and own up to what failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glora.cli.console import print_error
from glora.cli.options import UsageError, assignments_of, seeds_of

if TYPE_CHECKING:
    from rich.console import Console

    from glora.experiments.plan import Plan
    from glora.experiments.search.sharing import Sharing


@contextlib.contextmanager
def shared_with(url: str | None, study: str | None, claim: str | None, output: Path) -> Iterator[Sharing | None]:
    """With whom runs are shared, if they are; what the database reports becomes one message."""
    if url is None and study is None and claim is None:
        yield None
        return
    from glora.experiments.search.sharing import open_sharing
    from glora.experiments.search.storage import storage_errors

    sharing = open_sharing(url, study, claim, output)
    with storage_errors(sharing.storage):
        yield sharing


def compare_methods(
    console: Console,
    output: Path,
    preset_name: str | None,
    methods: tuple[str, ...] | None,
    seeds: str | None,
    settings: dict[str, Any],
    sharing: Sharing | None,
    *,
    only_plan: bool,
) -> None:
    """`glora compare`."""
    from glora.experiments.presets import find_preset

    preset = find_preset(preset_name) if preset_name else None
    if preset:
        methods = methods or preset.methods
        settings = {**preset.settings, **settings}
    with console.status("Reading the task's data ..."):
        from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS
        from glora.experiments.plan import plan_comparison

        planned = plan_comparison(
            output,
            methods=DEFAULT_METHODS if methods is None else methods,
            seeds=seeds_of(seeds) if seeds is not None else preset.seeds if preset else DEFAULT_SEEDS,
            settings=settings,
        )
    _show_plans(console, [planned], sharing)
    if only_plan:
        return
    failed = _make(console, [planned], sharing)
    if failed < len(planned.runs):
        show_report(console, output)
    if preset and preset.note:
        console.print(f"\n{preset.note}", style="dim", markup=False, highlight=False)
    _report_unfinished(console, failed, len(planned.runs), output)


def run_experiment(
    console: Console, path: Path, output: Path, given: dict[str, Any], sharing: Sharing | None, *, only_plan: bool
) -> None:
    """`glora run`: what is given on the command line wins over the file."""
    from glora.experiments.estimate import estimate
    from glora.experiments.experiment import load_experiment, plan_experiment
    from glora.experiments.experiment_view import describe_experiment

    experiment = load_experiment(path, given)
    console.print(describe_experiment(experiment, estimate(experiment, output), output))
    if only_plan and sharing is None:
        return
    with console.status("Reading the data ..."):
        plans = plan_experiment(experiment, output)
    console.print()
    _show_plans(console, plans, sharing)
    if only_plan:
        return
    failed = _make(console, plans, sharing)
    if failed < len(experiment.configs):
        show_report(console, output)
    _report_unfinished(console, failed, len(experiment.configs), output)


def search_request_of(
    path: Path | None,
    settings: dict[str, Any],
    methods: tuple[str, ...] | None,
    seeds: str | None,
    ranges: dict[str, str],
) -> dict[str, Any]:
    """What `glora search` is asked for, by an experiment file or by options alone.

    Raises:
        UsageError: an option says what the file says.
    """
    from glora.experiments.search.request import search_request, search_request_of_file

    numbers = None if seeds is None else seeds_of(seeds)
    if path is None:
        return search_request(settings, methods=methods, seeds=numbers, ranges=ranges)
    for option, value in (("--task", settings.get("task")), ("--methods", methods)):
        if value is not None:
            raise UsageError(f"{option}: the experiment file {path} says that; leave out the one or the other")
    models = settings.get("model")
    given = {
        "seeds": None if numbers is None else list(numbers),
        "data_dir": settings.get("data_dir"),
        "model_overrides": assignments_of("--model", models.split(",") if models else None),
        "settings": {name: value for name, value in settings.items() if name not in ("model", "data_dir")},
    }
    return search_request_of_file(path, {n: v for n, v in given.items() if v not in (None, {})}, ranges=ranges)


def search_and_run(
    console: Console,
    output: Path,
    request: dict[str, Any],
    options: dict[str, Any],
    *,
    storage: str | None,
    name: str,
    only_plan: bool,
) -> None:
    """`glora search`: the trials, then the runs with the best settings."""
    from glora.experiments.search.plan import SearchOptions, plan_search
    from glora.experiments.search.record import search_record, write_search_record
    from glora.experiments.search.run import SearchFailedError, plan_tuned_runs, run_trials
    from glora.experiments.search.sharing import Sharing
    from glora.experiments.search.storage import check_storage, open_storage, sqlite_url, storage_errors
    from glora.experiments.search.view import describe_outcomes, describe_search
    from glora.experiments.training.progress import open_progress

    shown = check_storage(storage) if storage else sqlite_url(output)
    opened = open_storage(storage) if storage and not only_plan else None
    with console.status("Reading the data ..."):
        planned = plan_search(output, name, options=SearchOptions(**options), **request)
    console.print(describe_search(planned, shown))
    if only_plan:
        return
    if opened is None:
        output.mkdir(parents=True, exist_ok=True)
        opened = open_storage(shown)
    with storage_errors(opened):
        try:
            with open_progress(console) as progress:
                outcomes = run_trials(planned, opened, progress)
        except SearchFailedError as error:
            print_error(error)
            raise typer.Exit(1) from None
        console.print(describe_outcomes(outcomes))
        write_search_record(output, search_record(planned, outcomes))
        plans = plan_tuned_runs(planned, outcomes)
        failed = _make(console, plans, Sharing(opened, name))
    runs = sum(len(each.runs) for each in plans)
    if failed < runs:
        show_report(console, output)
    _report_unfinished(console, failed, runs, output)


def _show_plans(console: Console, plans: Sequence[Plan], sharing: Sharing | None) -> None:
    from glora.experiments.plan_view import describe_plan

    if sharing is None:
        tables = [describe_plan(planned) for planned in plans]
    else:
        from glora.experiments.search.shared_state import look

        tables = [describe_plan(each, sharing, state) for each, state in zip(plans, look(sharing, plans))]
    for i, table in enumerate(tables):
        console.print(*([""] if i else []), table, sep="\n")


def _make(console: Console, plans: Sequence[Plan], sharing: Sharing | None) -> int:
    """Make the runs of plans; how many are not finished then."""
    from glora.experiments.training.progress import open_progress

    with open_progress(console) as progress:
        if sharing is not None:
            from glora.experiments.search.shared_runs import make_shared_runs

            records = make_shared_runs(sharing, plans, progress)
            return sum(len(each.runs) for each in plans) - sum(record.status == "finished" for record in records)
        from glora.experiments.runs import make_runs

        made = make_runs(plans, progress)
        return sum(len(each.to_make) for each in plans) - sum(record.status == "finished" for record in made)


def _report_unfinished(console: Console, failed: int, runs: int, output: Path) -> None:
    """Say that runs are not finished, and end with an exit code that says so."""
    if failed:
        console.print(f"{failed} of {runs} runs did not finish", end="", style="red", highlight=False)
        console.print(
            f": see above, and the tracebacks in {output / 'runs'}. The same command tries them again.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def show_report(console: Console, directory: Path) -> None:
    """Write a folder's report again, and say where it is."""
    from glora.experiments.report.write import write_report

    path = write_report(directory, console=console)
    page = path.with_suffix(".html")
    console.print(f"\nThe report: {path}\nAs a page: {page}", markup=False, highlight=False, soft_wrap=True)
