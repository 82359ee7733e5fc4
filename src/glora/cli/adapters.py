"""Commands that train nothing: report, ranks, export, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from glora.cli.application import app
from glora.cli.console import open_console
from glora.cli.options import Debug, RanksSettings, UsageError, Verbosity, given
from glora.cli.training import show_report
from glora.messages import did_you_mean, pluralize


@app.command(help_epilogue="Example: glora report results")
def report(
    directory: Annotated[Path, Parameter(help="Output folder of `glora compare`, `run` or `search`.")],
    /,
    *,
    debug: Debug = False,
) -> None:
    """Make tables, pictures and the page report.html again from the records in a folder. Never trains."""
    show_report(open_console(), directory)


@app.command(help_epilogue="Example: glora ranks --model roberta-base --task rte --rank 8 --format yaml")
def ranks(
    *,
    settings: RanksSettings = None,
    batches: Annotated[int, Parameter(help="Batches of training data to read; 8 to 32 are enough.")] = 8,
    seed: Annotated[int, Parameter(help="Seeds the random sketch.")] = 0,
    form: Annotated[
        Literal["json", "yaml", "python"], Parameter(name="--format", help="yaml has axolotl's keys.")
    ] = "json",
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Print a rank_pattern for a model and a data set, from the gradients of a few batches. Trains nothing."""
    console = open_console(stderr=True)  # stdout can be piped
    with console.status(f"Reading the gradients of {pluralize(batches, 'batch')} ..."):
        from glora.cli.library_messages import log_messages_on
        from glora.experiments.calibration import suggest
        from glora.experiments.plan import check_settings

        asked = {"min_rank": 1, "seed": seed} | given(settings)
        if asked["min_rank"] < 1:
            raise UsageError(
                f"min_rank={asked['min_rank']} must be at least 1: a rank_pattern cannot leave a matrix out"
            )
        with log_messages_on(console, verbose):
            suggested = suggest(check_settings(asked), batches)
    if suggested.batches < batches:
        console.print(f"The training data has only {pluralize(suggested.batches, 'batch')}, not {batches:,}.")
    print(suggested.text(form))


@app.command(help_epilogue="Example: glora export my-adapter --uniform --output padded")
def export(
    adapter: Annotated[str, Parameter(help="Folder or hub id of a LoRA adapter.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="Folder for the exported adapter.")],
    uniform: Annotated[bool, Parameter(help="Pad every layer to the largest rank.")] = False,
    overwrite: Annotated[bool, Parameter(help="Replace an adapter that the output folder already holds.")] = False,
    debug: Debug = False,
) -> None:
    """Write an adapter in another form: --uniform for servers that read one rank for all layers."""
    if not uniform:
        raise UsageError("the form is missing: --uniform pads every layer to the largest rank, with the same function")
    from glora.cli.library_messages import log_messages_on

    console = open_console()
    with log_messages_on(console):
        from glora.export import export_uniform

        path = export_uniform(adapter, output, overwrite=overwrite)
    console.print(f"The padded adapter: {path}", soft_wrap=True)


@app.command(name="list", help_epilogue="Example: glora list methods")
def list_names(
    what: Annotated[str, Parameter(help="models, tasks or methods.")],
    /,
    *,
    debug: Debug = False,
) -> None:
    """List the known models, tasks or methods."""
    from rich.table import Table

    from glora.experiments.data.registry import TASKS
    from glora.experiments.methods.registry import METHODS
    from glora.experiments.models.registry import MODELS

    lists: dict[str, list[tuple[str, ...]]] = {
        "models": [(model.name, model.summary) for model in MODELS.values()],
        "tasks": [(task.name, task.summary) for task in TASKS.values()],
        "methods": [(m.name, m.summary, f"meets: {', '.join(m.meets) or 'neither'}") for m in METHODS.values()],
    }
    if what not in lists:
        raise UsageError(f"cannot list {what!r}{did_you_mean(what, lists) or '; choose one of ' + ', '.join(lists)}")
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in lists[what]:
        table.add_row(*row)
    open_console().print(table)
