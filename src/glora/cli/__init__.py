"""The command line: parses, calls, prints. Heavy imports are inside the commands, so that help comes at once."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ModuleNotFoundError as error:  # the core needs no typer, but the command is installed with it
    raise SystemExit(f"glora's command line needs {error.name}: pip install 'glora[experiments]'") from error

from glora._version import __version__
from glora.cli.console import open_console, print_error, running
from glora.cli.options import (
    SETTINGS_OF_RANKS,
    Claim,
    Debug,
    Methods,
    Preset,
    Seeds,
    Storage,
    Study,
    UsageError,
    Verbosity,
    assignments_of,
    names_of,
    seeds_of,
    with_settings,
)
from glora.cli.runs import compare_methods, run_experiment, search_and_run, search_request_of, shared_with, show_report
from glora.messages import pluralize

if TYPE_CHECKING:
    from rich.table import Table

app = typer.Typer(
    help="GLoRA: gradient-norm aware rank allocation for LoRA. The right rank in every weight matrix, at LoRA's cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line. What the user got wrong becomes one message and exit code 2, without a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
@with_settings
def compare(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the records and the report.")],
    settings: dict[str, Any],
    preset: Preset = None,
    methods: Methods = None,
    seeds: Seeds = None,
    storage: Storage = None,
    study: Study = None,
    claim: Claim = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be run, and stop.")] = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Train one model on one task with several methods and seeds, and report the difference.

    What is finished in the output folder is not run again: after Ctrl-C, or with more seeds, the same command goes on.
    Given on several machines with one --storage, they share the runs.
    """
    console = open_console()
    with running(console, output, verbose), shared_with(storage, study, claim, output) as sharing:
        compare_methods(console, output, preset, names_of(methods), seeds, settings, sharing, only_plan=plan)


@app.command()
def run(
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="EXPERIMENT.json", help="Experiment file, JSON or YAML.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the records and the report.", show_default="results/EXPERIMENT"
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds, with commas.", show_default="the file's")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting, such as epochs=1. Repeatable.")
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=FOLDER", help="Load a model of the file from here. Repeatable."),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help="Folder with the data sets' own files.")] = None,
    storage: Storage = None,
    study: Study = None,
    claim: Claim = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be run, and stop; loads nothing, without --storage.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON schema, and stop.")] = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Run an experiment file: every model on every data set, with each method and seed, and report the difference.

    What is given here wins over the file. Finished runs are not run again. Given on several machines with one --storage,
    they share the runs.
    """
    if schema:
        import json

        from glora.experiments.experiment_file import Experiment

        typer.echo(json.dumps(Experiment.model_json_schema(), indent=2))
        return
    if experiment is None:
        raise UsageError("there is no experiment file; name one, as in `glora run examples/experiment.json`")
    given = {
        "seeds": None if seeds is None else list(seeds_of(seeds)),
        "settings": assignments_of("--set", settings),
        "model_overrides": assignments_of("--model", models),
        "data_dir": data_dir,
    }
    folder = Path("results") / experiment.stem if output is None else output
    console = open_console()
    given = {name: value for name, value in given.items() if value not in (None, {})}
    with running(console, folder, verbose), shared_with(storage, study, claim, folder) as sharing:
        run_experiment(console, experiment, folder, given, sharing, only_plan=plan)


@app.command()
@with_settings
def search(
    settings: dict[str, Any],
    experiment: Annotated[
        Path | None,
        typer.Argument(metavar="EXPERIMENT.json", help="Experiment file, JSON or YAML.", show_default="none"),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", "-n", help="Trials of each method, on each model and task.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the records and the report.", show_default="results/EXPERIMENT or search"
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Database that any number of processes share, such as postgresql://user:password@host/database.",
            show_default="SQLite in the output folder",
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", metavar="NAME", help="Name in the database.", show_default="the output folder's"),
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=RANGE",
            help="What to search, such as learning_rate=1e-4-5e-4 or rank=4,8,16. Repeatable.",
            show_default="the file's; else learning_rate, beta, total_rank, warmup_steps",
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of the training examples that trials are judged by.")
    ] = 0.2,
    search_seed: Annotated[int, typer.Option("--search-seed", help="Seeds what the search chooses.")] = 0,
    methods: Methods = None,
    seeds: Seeds = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be searched and run, and stop.")] = False,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Tune every method alike, then run each with its best settings on all seeds, and report the difference.

    Settings are tuned on a part of the training examples, never on what is reported.
    The same command goes on with what is left; given on several machines with one --storage, they share the work.
    With an experiment file, --model is NAME=FOLDER.
    """
    folder = output or Path("results") / (experiment.stem if experiment else "search")
    console = open_console()
    with running(console, folder, verbose, kept="trials and runs"):
        search_and_run(
            console,
            folder,
            search_request_of(experiment, settings, names_of(methods), seeds, assignments_of("--range", ranges)),
            {"trials": trials, "held_out": held_out, "seed": search_seed},
            storage=storage,
            name=study or folder.resolve().name,
            only_plan=plan,
        )


@app.command()
def report(
    directory: Annotated[
        Path, typer.Argument(help="Output folder of `glora compare`, `run` or `search`.", show_default=False)
    ],
    debug: Debug = False,
) -> None:
    """Make tables, pictures and the page report.html again from the records in a folder. Never trains."""
    show_report(open_console(), directory)


@app.command()
@functools.partial(with_settings, names=SETTINGS_OF_RANKS)
def ranks(
    settings: dict[str, Any],
    batches: Annotated[
        int, typer.Option("--batches", help="Batches of training data to read; 8 to 32 are enough.")
    ] = 8,
    min_rank: Annotated[int, typer.Option("--min-rank", help="No matrix gets less; at least 1.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Seeds the random sketch.")] = 0,
    form: Annotated[str, typer.Option("--format", help="json, yaml (axolotl's keys) or python.")] = "json",
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Print a rank_pattern for a model and a data set, from the gradients of a few batches. Trains nothing."""
    from rich.console import Console

    console = Console(stderr=True)  # what is printed on stdout can be piped on
    with console.status(f"Reading the gradients of {pluralize(batches, 'batch')} ..."):
        from glora.experiments.calibration import FORMATS, suggest
        from glora.experiments.training.library_messages import log_messages_on

        if form not in FORMATS:
            raise UsageError(f"format={form!r} is unknown; choose one of {', '.join(FORMATS)}")
        if min_rank < 1:
            raise UsageError(f"min_rank={min_rank} must be at least 1: a rank_pattern cannot leave a matrix out")
        with log_messages_on(console, verbose):
            from glora.experiments.plan import check_settings

            suggested = suggest(check_settings(settings | {"min_rank": min_rank, "seed": seed}), batches)
    typer.echo(suggested.text(form))


@app.command()
def export(
    adapter: Annotated[str, typer.Argument(help="Folder or hub id of a LoRA adapter.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the exported adapter.")],
    uniform: Annotated[bool, typer.Option("--uniform", help="Pad every layer to the largest rank.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an adapter that the output folder already holds.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write an adapter in another form: --uniform for servers that read one rank for all layers."""
    if not uniform:
        raise UsageError("say in which form: --uniform pads every layer to the largest rank, with the same function")
    from glora.experiments.training.library_messages import log_messages_on

    console = open_console()
    with log_messages_on(console):
        from glora.export import export_saved_adapter

        path = export_saved_adapter(adapter, output, overwrite=overwrite)
    console.print(f"The padded adapter: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="models|tasks|methods", show_default=False, help="What to list.")],
    debug: Debug = False,
) -> None:
    """List the known models, tasks or methods."""
    open_console().print(_listing(what))


def _listing(what: str) -> Table:
    from rich.table import Table

    lists: dict[str, Callable[[], Sequence[tuple[str, ...]]]] = {
        "models": _models,
        "tasks": _tasks,
        "methods": _methods,
    }
    if what not in lists:
        near = difflib.get_close_matches(what, lists, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"cannot list {what!r}: {hint}There are {', '.join(lists)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in lists[what]():
        table.add_row(*row)
    return table


def _models() -> list[tuple[str, str]]:
    from glora.experiments.models.registry import MODELS

    return [(entry.name, entry.summary) for entry in MODELS.values()]


def _tasks() -> list[tuple[str, str]]:
    from glora.experiments.data.registry import TASKS

    return [(task.name, task.summary) for task in TASKS.values()]


def _methods() -> list[tuple[str, str, str]]:
    from glora.experiments.methods.base import METHODS

    return [
        (method.name, method.summary, f"meets: {', '.join(method.meets) or 'neither'}") for method in METHODS.values()
    ]
