"""Commands that train: compare, run and search. Each shows its plan, makes the runs, writes the report and says what failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from glora.cli.application import app
from glora.cli.console import open_console, print_error, running
from glora.cli.options import (
    NOT_SHARED,
    SEARCH,
    ComparisonSettings,
    Debug,
    Methods,
    Output,
    Plan,
    Preset,
    Search,
    Seeds,
    Shared,
    SharingOptions,
    UsageError,
    Verbosity,
    assignments_of,
    given,
    names_of,
    seeds_of,
)
from glora.cli.presets import find_preset
from glora.experiments.config import DEFAULT_METHODS, DEFAULT_SEEDS

if TYPE_CHECKING:
    from glora.experiments.config import RunConfig
    from glora.experiments.data.task import TaskData
    from glora.experiments.estimate import Pace
    from glora.experiments.experiment import ResolvedExperiment
    from glora.experiments.plan import Plan as ComparisonPlan
    from glora.experiments.search.plan import SearchPlan
    from glora.experiments.search.sharing import Sharing
    from glora.experiments.terminal import Terminal

ExperimentFile = Annotated[Path | None, Parameter(help="Experiment file, JSON or YAML.")]


@app.command(
    help_epilogue="Example: glora compare -o results --task rte --methods lora,glora:rule=spectrum\n\n"
    "Example: glora compare -o results --task train.csv --seeds 0,1,2 --plan"
)
def compare(
    *,
    output: Annotated[Path, Output],
    preset: Preset = None,
    methods: Methods = None,
    seeds: Seeds = None,
    settings: ComparisonSettings = None,
    shared: Shared = NOT_SHARED,
    plan: Plan = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Train one model on one task with several methods and seeds, and report the difference.

    Finished runs in the output folder are skipped: after Ctrl-C, or with more seeds, repeat the command.
    Given on several machines with one --storage, they share the runs.
    """
    console = open_console()
    start = find_preset(preset) if preset else None
    with running(console, output, verbose):
        sharing = _sharing(shared, output)
        with console.status("Reading the task's data ..."):
            from glora.experiments.plan import plan_comparison

            wanted, numbers = names_of(methods), seeds_of(seeds)
            planned = plan_comparison(
                output,
                methods=wanted if wanted is not None else start.methods if start else DEFAULT_METHODS,
                seeds=numbers if numbers is not None else start.seeds if start else DEFAULT_SEEDS,
                settings={**(start.settings if start else {}), **given(settings)},
            )
        if start:
            console.print(f"{start.intro}\n")
        _show_plans(console, [planned], sharing, timed=plan and bool(planned.to_make))
        if plan:
            return
        failed = _make(console, [planned], sharing)
        _finish(console, failed, len(planned.runs), output)


@app.command(
    help_epilogue="Example: glora run examples/experiment.json --plan\n\n"
    "Example: glora run examples/experiment.json --set epochs=1 --seeds 0"
)
def run(
    experiment: ExperimentFile = None,
    /,
    *,
    output: Annotated[Path | None, Output] = None,
    seeds: Annotated[str | None, Parameter(help="Seeds, with commas. Default: the file's.")] = None,
    settings: Annotated[
        list[str] | None, Parameter(name="--set", help="A setting, NAME=VALUE, such as epochs=1. Repeatable.")
    ] = None,
    models: Annotated[
        list[str] | None,
        Parameter(name="--model", help="Load a model of the file from a folder, NAME=FOLDER. Repeatable."),
    ] = None,
    data_dir: Annotated[str | None, Parameter(help="Folder with the data sets' own files.")] = None,
    shared: Shared = NOT_SHARED,
    plan: Plan = False,
    schema: Annotated[bool, Parameter(help="Print the file's JSON schema and stop.")] = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Run an experiment file: every model on every data set, with each method and seed, and report the difference.

    Options win over the file. Records go to results/EXPERIMENT by default; finished runs are skipped.
    Given on several machines with one --storage, they share the runs.
    """
    if schema:
        from glora.experiments.experiment_file import Experiment

        print(json.dumps(Experiment.model_json_schema(), indent=2))
        return
    if experiment is None:
        raise UsageError("the experiment file is missing; name one, as in `glora run examples/experiment.json`")
    fields = _file_fields(seeds_of(seeds), assignments_of("--set", settings), models, data_dir)
    folder = output or Path("results") / experiment.stem
    console = open_console()
    with running(console, folder, verbose):
        from glora.experiments.experiment import load_experiment, plan_experiment

        sharing = _sharing(shared, folder)
        resolved = load_experiment(experiment, fields)
        _show_experiment(console, resolved, folder, read_data=plan)
        if plan and sharing is None:
            return
        with console.status("Reading the data ..."):
            plans = plan_experiment(resolved, folder)
        console.print()
        _show_plans(console, plans, sharing)
        if plan:
            return
        failed = _make(console, plans, sharing)
        _finish(console, failed, len(resolved.configs), folder)


@app.command(
    help_epilogue="Example: glora search examples/experiment.json --trials 20 --plan\n\n"
    "Example: glora search --task rte --range learning_rate=1e-4-5e-4 --range beta=0.5-0.9"
)
def search(
    experiment: ExperimentFile = None,
    /,
    *,
    options: Search = SEARCH,
    output: Annotated[Path | None, Output] = None,
    ranges: Annotated[
        list[str] | None,
        Parameter(
            name="--range",
            help="What to search, NAME=RANGE, such as learning_rate=1e-4-5e-4 or rank=4,8,16. Repeatable. "
            "Default: the file's; else learning_rate, beta, total_rank, warmup_steps.",
        ),
    ] = None,
    methods: Methods = None,
    seeds: Seeds = None,
    settings: ComparisonSettings = None,
    shared: Shared = NOT_SHARED,
    plan: Plan = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Tune every method alike, then run each with its best settings on all seeds, and report the difference.

    Settings are tuned on a part of the training examples, never on what is reported. Records go to results/EXPERIMENT, or
    results/search, by default. Repeat the command to continue; given on several machines with one --storage, they share
    the work. With an experiment file, --model is NAME=FOLDER.
    """
    output = output or Path("results") / (experiment.stem if experiment else "search")
    console = open_console()
    with running(console, output, verbose, kept="trials and runs"):
        from glora.experiments.search.plan import plan_search
        from glora.experiments.search.record import search_name
        from glora.experiments.search.sharing import DEFAULT_CLAIM, Sharing
        from glora.experiments.search.storage import check_storage, open_storage, sqlite_url
        from glora.experiments.search.view import describe_search

        request = _search_request(
            experiment, given(settings), names_of(methods), seeds_of(seeds), assignments_of("--range", ranges)
        )
        url = shared.storage or sqlite_url(output)
        shown = check_storage(url)
        opened = open_storage(url) if shared.storage and not plan else None
        name = search_name(output, shared.study)
        with console.status("Reading the data ..."):
            planned = plan_search(output, name, options=options, **request)
        first = [pair.studies[0] for pair in planned.pairs] if plan else []
        console.print(describe_search(planned, shown, [_pace(console, each.base, each.task) for each in first]))
        if not plan:
            output.mkdir(parents=True, exist_ok=True)
            _search(console, planned, Sharing(opened or open_storage(url), name, shared.claim or DEFAULT_CLAIM))


def _search(console: Terminal, planned: SearchPlan, sharing: Sharing) -> None:
    """Make the trials of a search, and the runs with the best settings."""
    from glora.experiments.search.record import write_search_record
    from glora.experiments.search.trials import SearchFailedError, plan_tuned_runs, run_trials, search_record
    from glora.experiments.search.view import describe_outcomes
    from glora.experiments.training.progress import open_progress

    try:
        with open_progress(console) as progress:
            outcomes = run_trials(planned, sharing.storage, progress)
    except SearchFailedError as error:
        print_error(error)
        sys.exit(1)
    console.print(describe_outcomes(outcomes))
    write_search_record(planned.output, search_record(planned, outcomes))
    plans = plan_tuned_runs(planned, outcomes)
    failed = _make(console, plans, sharing)
    _finish(console, failed, sum(len(each.runs) for each in plans), planned.output)


def _search_request(
    path: Path | None,
    settings: dict[str, Any],
    methods: tuple[str, ...] | None,
    seeds: tuple[int, ...] | None,
    ranges: dict[str, str],
) -> dict[str, Any]:
    """Return what to search, by an experiment file or by options alone.

    Raises:
        UsageError: an option gives what the file gives.
    """
    from glora.experiments.search.plan import parse_ranges, search_request_of_file

    if path is None:
        given_lists = {name: value for name, value in (("methods", methods), ("seeds", seeds)) if value is not None}
        return {"pairs": [settings], "ranges": parse_ranges(ranges), **given_lists}
    for option, value in (("--task", settings.get("task")), ("--methods", methods)):
        if value is not None:
            raise UsageError(f"{option}: the experiment file {path} gives that; leave out one of them")
    models, data_dir = settings.pop("model", None), settings.pop("data_dir", None)
    fields = _file_fields(seeds, settings, models.split(",") if models else None, data_dir)
    return search_request_of_file(path, fields, ranges=ranges)


def _file_fields(
    seeds: tuple[int, ...] | None, settings: dict[str, Any], models: list[str] | None, data_dir: str | None
) -> dict[str, Any]:
    """Return the fields of an experiment file that options replace."""
    overrides = assignments_of("--model", models)
    fields = {"seeds": seeds, "settings": settings, "model_overrides": overrides, "data_dir": data_dir}
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _sharing(options: SharingOptions, output: Path) -> Sharing | None:
    """Return the workers that share the runs, or None."""
    if options == NOT_SHARED:
        return None
    from glora.experiments.search.sharing import open_sharing

    return open_sharing(options.storage, options.study, options.claim, output)


def _show_experiment(console: Terminal, experiment: ResolvedExperiment, output: Path, *, read_data: bool) -> None:
    """Show the experiment of a file, and the columns and labels found in custom data if `read_data`."""
    from glora.experiments.data.custom_data import parse_custom_data
    from glora.experiments.data.registry import TASKS
    from glora.experiments.estimate import estimate
    from glora.experiments.plan_view import describe_experiment

    custom = [name for name in experiment.datasets.values() if read_data and name not in TASKS]
    readings = {name: parse_custom_data(name).read(name)[0].reading for name in custom}
    console.print(describe_experiment(experiment, estimate(experiment, output), output, readings))


def _show_plans(
    console: Terminal, plans: Sequence[ComparisonPlan], sharing: Sharing | None, *, timed: bool = False
) -> None:
    from glora.experiments.plan_view import describe_plan

    paces = [_pace(console, each.to_make[0].config, each.task) if timed else None for each in plans]
    if sharing is None:
        tables = [describe_plan(planned, pace=pace) for planned, pace in zip(plans, paces)]
    else:
        from glora.experiments.search.sharing import look

        states = look(sharing, plans)
        tables = [describe_plan(each, sharing, state, pace) for each, state, pace in zip(plans, states, paces)]
    for i, table in enumerate(tables):
        console.print(*([""] if i else []), table, sep="\n")


def _pace(console: Terminal, config: RunConfig, task: TaskData) -> Pace:
    from glora.experiments.estimate import time_steps

    with console.status("Timing a few steps ..."):
        return time_steps(config, task)


def _make(console: Terminal, plans: Sequence[ComparisonPlan], sharing: Sharing | None) -> int:
    """Make the runs of plans and return the number of runs that did not finish."""
    from glora.experiments.training.progress import open_progress

    with open_progress(console) as progress:
        if sharing is not None:
            from glora.experiments.search.sharing import make_shared_runs

            records = make_shared_runs(sharing, plans, progress)
            wanted = sum(len(each.runs) for each in plans)
        else:
            from glora.experiments.runs import make_runs

            records = make_runs(plans, progress)
            wanted = sum(len(each.to_make) for each in plans)
        return wanted - sum(record.status == "finished" for record in records)


def _finish(console: Terminal, failed: int, runs: int, output: Path) -> None:
    """Report the finished runs; end with exit code 1 if some did not finish."""
    if failed < runs:
        show_report(console, output)
    if failed:
        console.print(f"{failed} of {runs} runs did not finish", end="", style="red")
        where = f"see above, and the tracebacks in {output / 'runs'}"
        console.print(f": {where}. The same command tries them again.", soft_wrap=True)
        sys.exit(1)


def show_report(console: Terminal, directory: Path) -> None:
    """Write a folder's report again and print its path."""
    from glora.experiments.report.write import write_report

    path = write_report(directory, console=console)
    console.print(f"\nThe report: {path}\nAs a page: {path.with_suffix('.html')}", soft_wrap=True)
