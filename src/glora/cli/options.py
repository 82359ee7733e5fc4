"""The command line's options, and what the text that is given for them means.

Every setting of a run has one option, under one name in every command that takes it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer


class UsageError(ValueError):
    """What was asked for on the command line does not make sense; a message says it all."""


Verbosity = Annotated[
    int, typer.Option("-v", "--verbose", count=True, help="-v: also the libraries' warnings; -vv: all they say.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]


def _setting(text: str, default: str | None, *names: str, panel: str, metavar: str | None = None) -> Any:
    """An option that is None unless it is given; its default is `RunConfig`'s or the preset's, and only shown here."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, show_default=default or False)


_RUNS, _TRAINING, _BUDGET = "What is compared", "Training, the same for all methods", "GLoRA"
_SHARING = "Many machines"

Preset = Annotated[str | None, _setting("Start from a preset: demo.", None, "--preset", panel=_RUNS, metavar="NAME")]

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
    "reallocate_every": Annotated[
        int | None, _setting("Steps between reallocations.", "there is one", "--reallocate-every", panel=_BUDGET)
    ],
    "max_reallocations": Annotated[
        int | None, _setting("No more reallocations.", "no limit", "--max-reallocations", panel=_BUDGET)
    ],
}
"""Field of `RunConfig` -> its option, for every command that trains with settings from the command line."""

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
"""Those that `glora ranks` takes: of the model, its data, the adapter and the budget."""


def with_settings(command: Callable[..., None], names: Sequence[str] = tuple(SETTINGS)) -> Callable[..., None]:
    """Give a command options of SETTINGS; what the user gives of them, it gets as the mapping `settings`."""
    own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SETTINGS[name])
        for name in names
    ]

    @functools.wraps(command)
    def with_settings(**arguments: Any) -> None:
        settings = {name: arguments.pop(name) for name in names}
        settings["target_modules"] = names_of(settings["target_modules"])
        command(**arguments, settings={name: value for name, value in settings.items() if value is not None})

    del with_settings.__wrapped__  # typer is to see these parameters, and not those of the command
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    with_settings.__signature__ = inspect.Signature([*parameters, *options])  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in (*parameters, *options)}
    return with_settings


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them; None if nothing is given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def seeds_of(text: str) -> tuple[int, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: one of them is no whole number.
    """
    try:
        return tuple(int(seed) for seed in names_of(text) or ())
    except ValueError:
        raise UsageError(f"seeds={text!r}: seeds are whole numbers with commas between them, such as 0,1,2") from None


def assignments_of(option: str, texts: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` of an option that can be given several times.

    Raises:
        UsageError: a text is of another form, or a name is there twice.
    """
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
