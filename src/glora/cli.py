"""The command line: parses, calls, prints. Heavy imports are inside the commands, so that help comes at once."""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import typer
except ModuleNotFoundError as error:  # the core needs no typer, but the command is installed with it
    raise SystemExit(f"glora's command line needs {error.name}: pip install 'glora[experiments]'") from error

from glora._version import __version__

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from glora.experiments.compare import Plan
    from glora.experiments.shared_plan import Sharing


class UsageError(ValueError):
    """What was asked for on the command line does not make sense; a message says it all."""


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

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
        _complain(error)
        sys.exit(2)


def _complain(error: Exception) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print("[bold red]error:[/]", end=" ")
    console.print(
        str(error).strip() or type(error).__name__, markup=False, highlight=False, style="red", soft_wrap=True
    )
    if unwritten := getattr(error, "unwritten", None):  # the record of a run that could be kept nowhere
        typer.echo(unwritten)
    if isinstance(error, ModuleNotFoundError):
        console.print("pip install 'glora[experiments]' brings what experiments need", style="dim")
    if type(error) in (ValueError, ImportError, OSError):  # not one of our own: it may be a fault of the program
        console.print("(--debug shows where this comes from)", style="dim")


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


Verbosity = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="-v: also the libraries' warnings; -vv: all they say.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]


def _setting(text: str, default: str | None, *names: str, panel: str, metavar: str | None = None) -> Any:
    """An option that is None unless it is given; its default is `RunConfig`'s or the preset's, and only shown here."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=default or False)


_RUNS, _TRAINING, _BUDGET = "What is compared", "Training, the same for all methods", "GLoRA"
_SHARING = "Many machines"

Methods = Annotated[
    str | None,
    _setting(
        "Methods, with commas; glora:keep=svd is a variant.",
        "lora,adalora,glora",
        "--methods",
        panel=_RUNS,
        metavar="NAMES",
    ),
]
Seeds = Annotated[str | None, _setting("Seeds, with commas.", "0,1,2", "--seeds", panel=_RUNS, metavar="NUMBERS")]

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database by which any number of processes share the runs, such as postgresql://user:password@host/database.",
        rich_help_panel=_SHARING,
        show_default="they are not shared",
    ),
]
Study = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="NAME",
        help="Name in the database.",
        rich_help_panel=_SHARING,
        show_default="the output folder's",
    ),
]
Claim = Annotated[
    str | None,
    typer.Option(
        "--claim",
        metavar="seeds|runs",
        help="What a process takes at a time: a seed with all methods, whose times can be compared, or one run.",
        rich_help_panel=_SHARING,
        show_default="seeds",
    ),
]

SETTINGS: dict[str, Any] = {
    "model": Annotated[
        str | None, _setting("Model: a known name, a hub id or a folder.", "all-MiniLM-L6-v2", "--model", panel=_RUNS)
    ],
    "task": Annotated[
        str | None, _setting("Task: a known name, or a data file of one's own.", "stdlib-docs", "--task", panel=_RUNS)
    ],
    "data_dir": Annotated[str | None, _setting("Folder with the task's own files.", None, "--data-dir", panel=_RUNS)],
    "report_to": Annotated[
        str | None,
        _setting("Watch the runs in: tensorboard, wandb, ...", "nothing", "--report-to", panel=_RUNS, metavar="NAMES"),
    ],
    "train_limit": Annotated[
        int | None, _setting("Use at most so many training examples.", "all", "--train-limit", panel=_RUNS)
    ],
    "eval_limit": Annotated[
        int | None, _setting("Evaluate on at most so many examples.", "all", "--eval-limit", panel=_RUNS)
    ],
    "rank": Annotated[int | None, _setting("Rank of uniform LoRA.", "8", "--rank", "-r", panel=_TRAINING)],
    "lora_alpha": Annotated[
        float | None, _setting("Alpha; all methods scale by alpha / rank.", "2 * rank", "--lora-alpha", panel=_TRAINING)
    ],
    "lora_dropout": Annotated[
        float | None, _setting("Dropout on the adapters' input.", "0", "--lora-dropout", panel=_TRAINING)
    ],
    "target_modules": Annotated[
        str | None,
        _setting(
            "Adapted matrices: endings of their names, with commas.",
            "all linear layers of the encoder or decoder",
            "--target-modules",
            panel=_TRAINING,
            metavar="NAMES",
        ),
    ],
    "learning_rate": Annotated[float | None, _setting("Peak learning rate of AdamW.", "2e-4", "--lr", panel=_TRAINING)],
    "epochs": Annotated[float | None, _setting("Passes over the training data.", "3", "--epochs", panel=_TRAINING)],
    "batch_size": Annotated[int | None, _setting("Examples a step.", "32", "--batch-size", panel=_TRAINING)],
    "max_length": Annotated[
        int | None,
        _setting("Tokens an example.", "128; 1024 for written answers", "--max-length", panel=_TRAINING),
    ],
    "group_by_length": Annotated[
        bool | None,
        _setting("Batches of examples of one length.", "at random", "--group-by-length", panel=_TRAINING),
    ],
    "max_new_tokens": Annotated[
        int | None, _setting("Tokens that a written answer may have.", "512", "--max-new-tokens", panel=_TRAINING)
    ],
    "temperature": Annotated[
        float | None, _setting("Draw written answers at this temperature.", "greedy", "--temperature", panel=_TRAINING)
    ],
    "lr_scheduler": Annotated[
        str | None, _setting("Schedule, as transformers names it.", "linear", "--lr-scheduler", panel=_TRAINING)
    ],
    "lr_warmup": Annotated[
        float | None, _setting("Share of the steps over which the rate rises.", "0.06", "--lr-warmup", panel=_TRAINING)
    ],
    "weight_decay": Annotated[float | None, _setting("Weight decay of AdamW.", "0", "--weight-decay", panel=_TRAINING)],
    "precision": Annotated[
        str | None,
        _setting("float32, or bfloat16 (autocast).", "float32", "--precision", panel=_TRAINING, metavar="TYPE"),
    ],
    "total_rank": Annotated[
        int | None, _setting("Rank budget of all matrices together.", "matrices * rank", "--total-rank", panel=_BUDGET)
    ],
    "warmup_steps": Annotated[
        float | None,
        _setting("Steps with uniform ranks; below 1 a share of all.", "one epoch", "--warmup-steps", panel=_BUDGET),
    ],
    "beta": Annotated[float | None, _setting("Decay of the averaged norms.", "0.9", "--beta", panel=_BUDGET)],
    "signal": Annotated[
        str | None,
        _setting("Which norm: delta, delta_exact or lora_b.", "delta", "--signal", panel=_BUDGET, metavar="NAME"),
    ],
    "budget": Annotated[
        str | None,
        _setting("What equals uniform LoRA's: rank or parameters.", "rank", "--budget", panel=_BUDGET, metavar="NAME"),
    ],
    "min_rank": Annotated[int | None, _setting("No matrix gets less.", "0", "--min-rank", panel=_BUDGET)],
    "max_rank": Annotated[int | None, _setting("No matrix gets more.", "none", "--max-rank", panel=_BUDGET)],
    "keep": Annotated[
        str | None,
        _setting(
            "Columns a shrinking matrix keeps: norm, svd or first.", "norm", "--keep", panel=_BUDGET, metavar="RULE"
        ),
    ],
    "score": Annotated[
        str | None,
        _setting("Ranks go by: last_singular_value.", "gradient norm", "--score", panel=_BUDGET, metavar="NAME"),
    ],
    "score_exponent": Annotated[
        float | None, _setting("p: ranks go by norm^p.", "1", "--score-exponent", panel=_BUDGET)
    ],
    "relative_to": Annotated[
        str | None,
        _setting("Divide norms by weight or size.", "nothing", "--relative-to", panel=_BUDGET, metavar="NAME"),
    ],
    "rank_scaling": Annotated[
        str | None,
        _setting("Scaling by rank: inverse_sqrt, inverse.", "held", "--rank-scaling", panel=_BUDGET, metavar="RULE"),
    ],
    "reallocate_every": Annotated[
        int | None, _setting("Steps between reallocations.", "there is one", "--reallocate-every", panel=_BUDGET)
    ],
    "max_reallocations": Annotated[
        int | None, _setting("No more reallocations.", "no limit", "--max-reallocations", panel=_BUDGET)
    ],
}
"""Field of `RunConfig` -> its option, for every command that trains with settings from the command line."""


def _with_settings(command: Callable[..., None], names: Sequence[str] = tuple(SETTINGS)) -> Callable[..., None]:
    """Give a command options of SETTINGS; what the user gives of them, it gets as the mapping `settings`."""
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SETTINGS[name])
        for name in names
    ]

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> None:
        settings = {name: arguments.pop(name) for name in names}
        settings["target_modules"] = _names(settings["target_modules"])
        command(**arguments, settings={name: value for name, value in settings.items() if value is not None})

    del with_settings.__wrapped__  # typer is to see these parameters, and not those of the command
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    with_settings.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in (*parameters, *options)}
    return with_settings


@app.command()
@_with_settings
def compare(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the records and the report.")],
    settings: dict[str, Any],
    preset: Annotated[
        str | None, _setting("Start from a preset: demo.", None, "--preset", panel=_RUNS, metavar="NAME")
    ] = None,
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
    console = _console()
    with _running(console, output, verbose), _sharing(storage, study, claim, output) as sharing:
        _compare(console, output, preset, _names(methods), seeds, settings, sharing, only_plan=plan)


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
        "seeds": None if seeds is None else list(_seeds(seeds)),
        "settings": _assignments("--set", settings),
        "model_overrides": _assignments("--model", models),
        "data_dir": data_dir,
    }
    folder = Path("results") / experiment.stem if output is None else output
    console = _console()
    given = {name: value for name, value in given.items() if value not in (None, {})}
    with _running(console, folder, verbose), _sharing(storage, study, claim, folder) as sharing:
        _run(console, experiment, folder, given, sharing, only_plan=plan)


@app.command()
@_with_settings
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
    console = _console()
    with _running(console, folder, verbose, kept="trials and runs"):
        _search(
            console,
            folder,
            _search_request(experiment, settings, _names(methods), seeds, _assignments("--range", ranges)),
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
    _report(_console(), directory)


SETTINGS_OF_RANKS = (
    "model",
    "task",
    "data_dir",
    "batch_size",
    "max_length",
    "rank",
    "lora_alpha",
    "target_modules",
    "total_rank",
    "budget",
    "max_rank",
)


@app.command()
@functools.partial(_with_settings, names=SETTINGS_OF_RANKS)
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
    with console.status(f"Reading the gradients of {batches} batches ..."):
        from glora.experiments.calibration import FORMATS, suggest
        from glora.experiments.messages import log_messages_on

        if form not in FORMATS:
            raise UsageError(f"format={form!r} is unknown; choose one of {', '.join(FORMATS)}")
        if min_rank < 1:
            raise UsageError(f"min_rank={min_rank} must be at least 1: a rank_pattern cannot leave a matrix out")
        with log_messages_on(console, verbose):
            from glora.experiments.compare import check_settings

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
    from glora.experiments.messages import log_messages_on

    console = _console()
    with log_messages_on(console):
        from glora.uniform_export import export_saved_adapter

        path = export_saved_adapter(adapter, output, overwrite=overwrite)
    console.print(f"The padded adapter: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(metavar="models|tasks|methods", show_default=False, help="What to list.")],
    debug: Debug = False,
) -> None:
    """List the known models, tasks or methods."""
    _console().print(_listing(what))


@contextlib.contextmanager
def _sharing(url: str | None, study: str | None, claim: str | None, output: Path) -> Iterator[Sharing | None]:
    """With whom runs are shared, if they are; what the database reports becomes one message."""
    if url is None and study is None and claim is None:
        yield None
        return
    from glora.experiments.shared_plan import open_sharing
    from glora.experiments.study_storage import storage_errors

    sharing = open_sharing(url, study, claim, output)
    with storage_errors(sharing.storage):
        yield sharing


@contextlib.contextmanager
def _running(console: Console, output: Path, verbosity: int, kept: str = "runs") -> Iterator[None]:
    """Messages on the console; Ctrl-C ends with a line that says how to go on."""
    try:
        from glora.experiments.messages import log_messages_on

        with log_messages_on(console, verbosity):
            yield
    except KeyboardInterrupt:
        console.print(
            f"\nInterrupted. Finished {kept} are kept in {output}; the same command goes on with the rest.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def _console() -> Console:
    from rich.console import Console

    return Console()


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in _names(text) or ())
    except ValueError:
        raise UsageError(f"seeds={text!r}: seeds are whole numbers with commas between them, such as 0,1,2") from None


def _assignments(option: str, texts: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` of an option that can be given several times."""
    pairs = [text.partition("=") for text in texts or ()]
    for name, sign, value in pairs:
        if not (name.strip() and sign and value.strip()):
            raise UsageError(
                f"{option} {name}{sign}{value}: write {'NAME=RANGE' if option == '--range' else 'NAME=VALUE'}"
            )
    names = [name.strip() for name, _, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"{option}: {', '.join(twice)} is given more than once; keep one of them")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _compare(
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
    from glora.experiments.presets import find_preset

    preset = find_preset(preset_name) if preset_name else None
    if preset:
        methods = methods or preset.methods
        settings = {**preset.settings, **settings}
    with console.status("Reading the task's data ..."):
        from glora.experiments.compare import DEFAULT_METHODS, DEFAULT_SEEDS, plan_comparison

        planned = plan_comparison(
            output,
            methods=DEFAULT_METHODS if methods is None else methods,
            seeds=_seeds(seeds) if seeds is not None else preset.seeds if preset else DEFAULT_SEEDS,
            settings=settings,
        )
    _show_plans(console, [planned], sharing)
    if only_plan:
        return
    failed = _make(console, [planned], sharing)
    if failed < len(planned.runs):
        _report(console, output)
    if preset and preset.note:
        console.print(f"\n{preset.note}", style="dim", markup=False, highlight=False)
    _admit(console, failed, len(planned.runs), output)


def _run(
    console: Console, path: Path, output: Path, given: dict[str, Any], sharing: Sharing | None, *, only_plan: bool
) -> None:
    from glora.experiments.experiment import load_experiment
    from glora.experiments.experiment_plan import outlook, plan_experiment
    from glora.experiments.experiment_view import describe_experiment

    experiment = load_experiment(path, given)
    console.print(describe_experiment(experiment, outlook(experiment, output), output))
    if only_plan and sharing is None:
        return
    with console.status("Reading the data ..."):
        plans = plan_experiment(experiment, output)
    if sharing is not None:
        console.print()
        _show_plans(console, plans, sharing)
    if only_plan:
        return
    if sharing is not None:
        failed = _make(console, plans, sharing)
    else:
        failed = 0
        for planned in plans:
            console.print()
            _show_plans(console, [planned], None)
            failed += _make(console, [planned], None)
    if failed < len(experiment.configs):
        _report(console, output)
    _admit(console, failed, len(experiment.configs), output)


def _search_request(
    path: Path | None,
    settings: dict[str, Any],
    methods: tuple[str, ...] | None,
    seeds: str | None,
    ranges: dict[str, str],
) -> dict[str, Any]:
    from glora.experiments.search_request import search_request, search_request_of_file

    numbers = None if seeds is None else _seeds(seeds)
    if path is None:
        return search_request(settings, methods=methods, seeds=numbers, ranges=ranges)
    for option, value in (("--task", settings.get("task")), ("--methods", methods)):
        if value is not None:
            raise UsageError(f"{option}: the experiment file {path} says that; leave out the one or the other")
    models = settings.get("model")
    given = {
        "seeds": None if numbers is None else list(numbers),
        "data_dir": settings.get("data_dir"),
        "model_overrides": _assignments("--model", models.split(",") if models else None),
        "settings": {name: value for name, value in settings.items() if name not in ("model", "data_dir")},
    }
    return search_request_of_file(path, {n: v for n, v in given.items() if v not in (None, {})}, ranges=ranges)


def _search(
    console: Console,
    output: Path,
    request: dict[str, Any],
    options: dict[str, Any],
    *,
    storage: str | None,
    name: str,
    only_plan: bool,
) -> None:
    from glora.experiments.progress import open_progress
    from glora.experiments.search import SearchFailedError, plan_tuned_runs, run_trials
    from glora.experiments.search_plan import SearchOptions, plan_search
    from glora.experiments.search_record import search_record, write_search_record
    from glora.experiments.search_view import describe_outcomes, describe_search
    from glora.experiments.shared_plan import Sharing
    from glora.experiments.study_storage import check_storage, open_storage, sqlite_url, storage_errors

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
            _complain(error)
            raise typer.Exit(1) from None
        console.print(describe_outcomes(outcomes))
        write_search_record(output, search_record(planned, outcomes))
        plans = plan_tuned_runs(planned, outcomes)
        failed = _make(console, plans, Sharing(opened, name))
    runs = sum(len(each.runs) for each in plans)
    if failed < runs:
        _report(console, output)
    _admit(console, failed, runs, output)


def _show_plans(console: Console, plans: Sequence[Plan], sharing: Sharing | None) -> None:
    from glora.experiments.plan_view import describe_plan

    if sharing is None:
        tables = [describe_plan(planned) for planned in plans]
    else:
        from glora.experiments.shared_state import look

        tables = [describe_plan(each, sharing, state) for each, state in zip(plans, look(sharing, plans))]
    for i, table in enumerate(tables):
        console.print(*([""] if i else []), table, sep="\n")


def _make(console: Console, plans: Sequence[Plan], sharing: Sharing | None) -> int:
    """Make the runs of plans; how many are not finished then."""
    from glora.experiments.progress import open_progress

    with open_progress(console) as progress:
        if sharing is not None:
            from glora.experiments.shared_runs import make_shared_runs

            records = make_shared_runs(sharing, plans, progress)
            return sum(len(each.runs) for each in plans) - sum(record.status == "finished" for record in records)
        from glora.experiments.compare import compare

        return sum(record.status == "failed" for each in plans for record in compare(each, progress))


def _admit(console: Console, failed: int, runs: int, output: Path) -> None:
    """Say that runs failed, and end with an exit code that says so."""
    if failed:
        console.print(f"{failed} of {runs} runs failed", end="", style="red", highlight=False)
        console.print(
            f": see above, and the tracebacks in {output / 'runs'}. The same command tries them again.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _report(console: Console, directory: Path) -> None:
    from glora.experiments.report import write_report

    path = write_report(directory, console=console)
    page = path.with_suffix(".html")
    console.print(f"\nThe report: {path}\nAs a page: {page}", markup=False, highlight=False, soft_wrap=True)


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
    from glora.experiments.models import MODELS

    return [(entry.name, entry.summary) for entry in MODELS.values()]


def _tasks() -> list[tuple[str, str]]:
    from glora.experiments.tasks import TASKS

    return [(task.name, task.summary) for task in TASKS.values()]


def _methods() -> list[tuple[str, str, str]]:
    from glora.experiments.methods import METHODS

    return [
        (method.name, method.summary, f"meets: {', '.join(method.meets) or 'neither'}") for method in METHODS.values()
    ]
