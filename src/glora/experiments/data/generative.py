"""Tasks whose answers are written, from the hub or from files.

Files may be laid out as on the hub (JSON lines, JSON or Parquet) or as the authors published them. GSM8K and MATH have a
training and a test split: the test split is scored, and a search tunes on a part of the training split. Alpaca and Dolly have
one split: a twentieth of it is held out by the prompts (`split_by_prompt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glora.experiments.data.conversations import Columns, check_references, read_conversations, split_by_prompt
from glora.experiments.data.source import HubSource, LoadHub
from glora.experiments.data.table_files import CUSTOM_SUFFIXES, Table
from glora.experiments.data.task import EXACT_MATCH_METRICS, LOSS_METRICS, DataError, Examples, Scoring, Task
from glora.messages import pluralize

HELD_OUT_SHARE = 0.05

MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@dataclass(frozen=True)
class GenerativeTask(HubSource):
    """A task whose answers are written.

    Attributes:
        columns: meaning of its columns.
        hub_file: name of the only data file on the hub, where it is not one of `train.*`.
    """

    columns: Columns
    hub_file: str | None = None

    def file_names(self, split: str) -> str:
        """See `HubSource`."""
        return f"{split}.jsonl (or .parquet){f' or {self.hub_file}' if self.hub_file else ''}"

    def split_files(self, folder: Path, split: str) -> list[Path]:
        """Find the files of one split, in the first layout that is complete."""
        if self.hub_file and (folder / self.hub_file).is_file():
            return [folder / self.hub_file]
        parts = [config for config in self.configs if config]
        for inner in (folder, folder / "data", *(folder / part for part in parts[:1] if len(parts) == 1)):
            found = _files_of(inner, split)
            if found:
                return found
        # a folder for each configuration, as on the hub; or for each split, as MATH's authors have it
        each = [_files_of(folder / part, split) for part in parts]
        published = [sorted((folder / split / part).glob("*.json")) for part in parts]
        layout = next((layout for layout in (each, published) if len(parts) > 1 and all(layout)), [])
        return [path for paths in layout for path in paths]

    def examples(self, table: Table, split: str) -> Examples:
        """See `HubSource`."""
        examples = read_conversations(table, self.columns, empty_answers=True)
        if split != "train":
            check_references(self.task, examples, table)
        return examples

    def read(self, data_dir: str | Path | None, load_hub: LoadHub, *, only_train: bool = False) -> dict[str, Examples]:
        """See `Source`."""
        splits = super().read(data_dir, load_hub, only_train=only_train)
        if self.task.scoring:
            return splits
        train, held_out = split_by_prompt(splits["train"], HELD_OUT_SHARE)
        if not len(train) or not len(held_out):
            raise DataError(
                f"{self.task.name}: {pluralize(len(splits['train']), 'example')} are too few to hold out "
                f"{HELD_OUT_SHARE:.0%} of them; add examples."
            )
        return {"train": train} if only_train else {"train": train, self.task.evaluation_splits[0]: held_out}


def _files_of(folder: Path, split: str) -> list[Path]:
    for suffix in (*CUSTOM_SUFFIXES, ".json"):
        if (folder / f"{split}{suffix}").is_file():
            return [folder / f"{split}{suffix}"]
    return sorted(folder.glob(f"{split}-*-of-*.parquet"))


def _task(
    name: str,
    summary: str,
    source: str,
    columns: Columns,
    aliases: tuple[str, ...],
    scoring: Scoring | None = None,
    *,
    configs: tuple[str | None, ...] = (None,),
    hub_file: str | None = None,
) -> GenerativeTask:
    """The answers of a scored task are compared on its test split; of another one a part of `train` is held out."""
    task = Task(
        name,
        summary,
        EXACT_MATCH_METRICS if scoring else LOSS_METRICS,
        evaluation_splits=("test" if scoring else "validation",),
        kind="generation",
        scoring=scoring,
        source=source,
        aliases=aliases,
    )
    folders, splits = (name, source.rpartition("/")[2]), ("train", "test") if scoring else ("train",)
    return GenerativeTask(task, folders, configs, splits, columns, hub_file)


GENERATIVE: tuple[GenerativeTask, ...] = (
    _task(
        "gsm8k", "school mathematics in words; the final number is scored, on the test split (7,473 examples)",
        "openai/gsm8k", Columns("question", "answer"), ("gsm8k main",),
        "final_number", configs=("main",),
    ),
    _task(
        "MATH", r"competition mathematics; the content of \boxed{} is scored, on the test split (7,500 examples)",
        "EleutherAI/hendrycks_math",  # the authors' hendrycks/competition_math is no longer there
        Columns("problem", "solution"), ("hendrycks/competition_math", "competition_math", "hendrycks_math"),
        "boxed", configs=MATH_SUBJECTS,
    ),
    _task(
        "alpaca-cleaned", "instructions and answers; loss and perplexity on a twentieth, held out by prompt (51,760 examples)",
        "yahma/alpaca-cleaned", Columns("instruction", "output", "input"), ("Alpaca",),
        hub_file="alpaca_data_cleaned.json",
    ),
    _task(
        "databricks-dolly-15k", "the same, written by people; a twentieth is held out by prompt (15,011 examples)",
        "databricks/databricks-dolly-15k", Columns("instruction", "response", "context"), ("dolly-15k", "Dolly"),
        hub_file="databricks-dolly-15k.jsonl",
    ),
)  # fmt: skip
