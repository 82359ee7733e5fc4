"""`glora compress`: a smaller adapter with as much of what it has learned as fits."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from glora.cli.application import app
from glora.cli.console import open_console
from glora.cli.options import CutSettings, Debug, EvaluationSettings, UsageError, Verbosity, given, option_of, share_of
from glora.config import SettingError

if TYPE_CHECKING:
    from glora.compress import CompressibleAdapter, Compression, Size
    from glora.experiments.compression.evaluation import TaskEvaluation
    from glora.experiments.terminal import Terminal


@app.command(
    help_epilogue="Example: glora compress my-adapter --keep 25% --output smaller\n\n"
    "Example: glora compress my-adapter --plan --energy 95%"
)
def compress(
    adapter: Annotated[str, Parameter(help="Folder or hub id of a LoRA adapter.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=("--output", "-o"), help="Folder for the smaller adapter.")] = None,
    keep: Annotated[
        str | None, Parameter(help="Share of the parameters to keep, 25%, or their number, 100000.")
    ] = None,
    tolerance: Annotated[
        float | None,
        Parameter(
            help="With --task: the smallest adapter that loses at most this many points of its metric, such as 0.5."
        ),
    ] = None,
    cut_settings: CutSettings = None,
    uniform: Annotated[bool, Parameter(help="Cut every matrix to the same rank.")] = False,
    plan: Annotated[bool, Parameter(help="Show the energy that each size keeps, and stop.")] = False,
    picture: Annotated[Path | None, Parameter(help="Draw the energy against the size into this PNG.")] = None,
    overwrite: Annotated[bool, Parameter(help="Replace an adapter that the output folder already holds.")] = False,
    settings: EvaluationSettings = None,
    verbose: Verbosity = 0,
    debug: Debug = False,
) -> None:
    """Cut a trained LoRA adapter down to the directions that carry most of its update. Needs no data and no base model.

    Give one of --keep, --average-rank, --energy and --tolerance. With --task, the adapter is evaluated before and after on
    the task's evaluation split; --model is then the base model, by default the one that the adapter names.
    """
    evaluated, asked = given(settings), given(cut_settings) | {"uniform": uniform}
    asked |= {} if keep is None else {"parameters": _parameters(keep)}
    if evaluated or tolerance is not None:
        _check_evaluation(evaluated, tolerance, plan=plan)
    if not plan:
        _check_size(asked, tolerance, output)

    from glora.cli.library_messages import log_messages_on

    console = open_console()
    with log_messages_on(console, verbose), _errors_by_option(keep):
        from glora.compress import WAYS, CompressibleAdapter, Size
        from glora.experiments.compression.view import plan_table
        from glora.lora.saved_adapter import check_output

        size = Size(**asked) if asked.keys() & WAYS else None
        whole = Size(energy=1.0, **{name: value for name, value in asked.items() if name not in WAYS})
        directory = None if plan or output is None else check_output(output, adapter, overwrite)
        with console.status("Reading the adapter ..."):
            read = CompressibleAdapter(adapter)
        made = None if size is None else read.cut(size)
        cut = functools.partial(read.cut_to_share, like=whole)
        if picture is not None:
            _draw(console, picture, read, whole, Path(adapter).name)
        if directory is None:
            even = None if uniform else functools.partial(read.cut_to_share, like=replace(whole, uniform=True))
            console.print(plan_table(cut, read, made, even))
            return
        task = _evaluation(console, evaluated, read.saved.config.base_model_name_or_path)
        before = _score(console, task, "before", adapter)
        if task is not None and before is not None and tolerance is not None:
            made = _smallest(console, task, read, cut, before, tolerance)
        assert made is not None  # _check_size: there is a size or a tolerance
        _write(console, read, made, directory)
        _score(console, task, "after", directory, before)


def _check_size(asked: Collection[str], tolerance: float | None, output: Path | None) -> None:
    """Check that a folder for the adapter and exactly one size are given."""
    options = {"parameters": "--keep", "average_rank": "--average-rank", "energy": "--energy"}
    chosen = [name for name in options if name in asked] + ([] if tolerance is None else ["tolerance"])
    if len(chosen) != 1 or output is None:
        lacking = "--output" if len(chosen) == 1 else f"exactly one of {', '.join(options.values())}, --tolerance"
        raise UsageError(f"give {lacking}; or --plan, to see the energy that each size keeps")


def _check_evaluation(evaluated: Collection[str], tolerance: float | None, *, plan: bool) -> None:
    """Check that an evaluation has a task, and that --plan does not leave it out."""
    option = "--tolerance" if tolerance is not None else option_of(next(iter(evaluated)))
    if plan or "task" not in evaluated:
        raise UsageError(
            f"{option}: --plan evaluates nothing; leave out one of them" if plan else f"{option} needs --task"
        )
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise UsageError(f"--tolerance {tolerance:g} must be a number of points, at least 0, such as 0.5")


@contextmanager
def _errors_by_option(keep: str | None) -> Iterator[None]:
    """Let errors name the options that the user gave, and not the arguments of `compress_adapter`."""
    try:
        yield
    except SettingError as error:
        options = {"parameters": f"--keep {keep}"}
        options |= {n: f"{option_of(n)} {value}" for n, value in error.values.items() if n not in options}
        raise UsageError(error.named(lambda name: options.get(name, option_of(name)))) from error


def _parameters(text: str) -> float:
    """Return a share of the parameters as a float, or their number as an int.

    Raises:
        UsageError: the text is neither, or a number that was meant as a share.
    """
    try:
        number = share_of(text)
    except ValueError:
        raise UsageError(
            f"--keep {text}: write a share such as 25%, or a number of parameters such as 100000"
        ) from None
    if text.strip().endswith("%"):
        return number
    if 1 <= number <= 100:
        raise UsageError(f"--keep {text}: write {number:g}% or {number / 100:g} for a share of the parameters")
    return int(number) if number > 1 and number.is_integer() else number


def _draw(console: Terminal, path: Path, adapter: CompressibleAdapter, whole: Size, title: str) -> None:
    from glora.experiments.compression.view import save_picture

    ways = {"global cut": False, "same rank everywhere": True}
    sizes = {name: replace(whole, uniform=uniform) for name, uniform in ways.items()}
    save_picture(
        path, {name: functools.partial(adapter.cut_to_share, like=each) for name, each in sizes.items()}, title
    )
    console.print(f"The picture: {path}", soft_wrap=True)


def _write(console: Terminal, adapter: CompressibleAdapter, made: Compression, directory: Path) -> None:
    from glora.experiments.compression.view import ranks_table, written_text

    written = adapter.write(made, directory)
    console.print(ranks_table(made, {name: matrix.cost for name, matrix in adapter.saved.matrices.items()}))
    console.print(written_text(adapter, written), soft_wrap=True)


def _evaluation(console: Terminal, settings: dict[str, Any], base: str | None) -> TaskEvaluation | None:
    """Return the task on which the adapter is evaluated, if one is given."""
    if "task" not in settings:
        return None
    from glora.experiments.compression.evaluation import TaskEvaluation
    from glora.experiments.plan import check_settings

    if "model" not in settings and not base:
        raise UsageError("the adapter does not name its base model; give --model")
    with console.status("Loading the model and the data ..."):
        return TaskEvaluation(check_settings({"model": base} | settings))


def _score(
    console: Terminal, task: TaskEvaluation | None, when: str, adapter: str | Path, before: float | None = None
) -> float | None:
    """Print an adapter's score, and its change, and return it."""
    if task is None:
        return None
    found = task.score(adapter)
    what = task.basis(found) if before is None else task.change(before, found)
    console.print(f"{when}: {task.text(found)} {what}", soft_wrap=True)
    return found


def _smallest(
    console: Terminal, task: TaskEvaluation, adapter: CompressibleAdapter, cut: Any, before: float, tolerance: float
) -> Compression:
    """Search the smallest adapter within the tolerance, with a line for each that is evaluated."""
    from glora.experiments.compression.evaluation import points_lost, smallest_within

    def loses(made: Compression) -> float:
        found = task.score_of(adapter, made)
        share = 100 * made.parameters / made.parameters_before
        console.print(f"  {share:5.1f} % of the parameters: {task.text(found)}", soft_wrap=True)
        return points_lost(task.metric, before, found)

    found = smallest_within(tolerance, cut, loses)
    which = "the smallest" if found.parameters < found.parameters_before else "none is smaller"
    console.print(f"{which} that loses at most {tolerance:g} points:", soft_wrap=True)
    return found
