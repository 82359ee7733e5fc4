r"""Custom data: a task from two files with named columns.

On the command line it is written `TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]`:

    reviews/train.csv                                     the columns are guessed
    reviews/train.csv:text:stars                          one text
    pairs/train.tsv:premise,hypothesis:label              two texts
    train.jsonl,held_out.jsonl:question,answer:label      a validation file of another name
    pairs/                                                the folder's train.* and validation.* (or dev.*)

Integer and string labels are classes; a label column of decimal numbers (4.5, 3.0) makes the task a regression (see `labels`).
Files with the columns of prompts and written answers (see `conversations`), and no column named as labels are, make it a
generative task. Its scoring follows from the training answers: the final number behind `####` if each has one, as in GSM8K; the
content of \boxed{} if each has one, as in MATH; otherwise only the loss is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from glora.experiments.data.answers import MARK, SCORINGS, find_scoring
from glora.experiments.data.conversations import check_references, find_columns, read_conversations
from glora.experiments.data.labels import LabelColumn, describe
from glora.experiments.data.table_files import CUSTOM_SUFFIXES, Table, column_names, read_table
from glora.experiments.data.task import (
    CLASSIFICATION_METRICS,
    EXACT_MATCH_METRICS,
    LOSS_METRICS,
    REGRESSION_METRICS,
    DataError,
    DataNotFoundError,
    Examples,
    Kind,
    Task,
)
from glora.paths import expanded, regular_file

VALIDATION_STEMS = ("validation", "dev", "valid", "val")
LABEL_COLUMNS = ("label", "labels", "gold_label", "class", "target", "score")
TEXT_COLUMNS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "answer"),
    ("sentence",),
    ("text",),
)
SYNTAX = "TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]], such as data/train.csv:premise,hypothesis:label"


@dataclass(frozen=True)
class CustomData:
    """Paths of the two files and names of the columns to use; None means that they are guessed."""

    train: Path
    validation: Path
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None

    @property
    def kind(self) -> Kind:
        """The kind of task, by the names of the columns; `read` reports a file that cannot be read."""
        if self.text_columns is not None or self.label_column is not None:
            return "classification"
        columns = column_names(self.train)
        labelled = any(column.lower() in LABEL_COLUMNS for column in columns)
        return "generation" if find_columns(columns) is not None and not labelled else "classification"

    def read(self, name: str, *, only_train: bool = False) -> tuple[Task, Mapping[str, Examples]]:
        """Read both files, or the training file alone; return the task that they make, and split -> examples.

        Args:
            name: the task's name in results.
            only_train: read the training file alone.

        Raises:
            DataNotFoundError: a file is missing.
            DataError: a malformed line, a missing or ambiguous column, a label that does not occur in training.
        """
        paths = {"train": self.train} if only_train else {"train": self.train, "validation": self.validation}
        tables = {split: read_table(path) for split, path in paths.items()}
        task = Task(name, f"data from {self.train}", metrics=CLASSIFICATION_METRICS)
        return (_read_written if self.kind == "generation" else self._read_labelled)(task, tables)

    def _read_labelled(self, task: Task, tables: Mapping[str, Table]) -> tuple[Task, dict[str, Examples]]:
        train = tables["train"]
        label_column = self.label_column or _guess_label_column(train)
        text_columns = self.text_columns or _guess_text_columns(train, label_column)
        labels = LabelColumn(train, label_column)
        splits = {}
        for split, table in tables.items():
            splits[split] = Examples.labelled([_texts(table, name) for name in text_columns], labels.read(table))
        metrics = REGRESSION_METRICS if labels.names is None else CLASSIFICATION_METRICS
        task = replace(task, metrics=metrics, label_names=labels.names)
        columns = f"texts {', '.join(text_columns)}, labels {label_column}"
        return replace(task, reading=f"{describe(task, splits['train'], train)}; {columns}"), splits


def _read_written(task: Task, tables: Mapping[str, Table]) -> tuple[Task, dict[str, Examples]]:
    train = tables["train"]
    columns = find_columns(train.columns)
    assert columns is not None, "CustomData.kind recognizes prompts and answers"
    splits: dict[str, Examples] = {}
    for split, table in tables.items():
        if find_columns(table.columns) != columns:
            raise DataError(
                f"{table.path}: the columns are {', '.join(table.columns)}; expected those of {Path(train.path).name}: "
                f"{', '.join(train.columns)}."
            )
        splits[split] = read_conversations(table, columns, empty_answers=False)
        if split == "train":
            scoring, lacking = find_scoring(splits[split].columns["answer"])
            if scoring and lacking:
                raise DataError(
                    f"{table.where(lacking[0])}: the answer has no {SCORINGS[scoring].part}, {len(table.lines) - len(lacking)} "
                    f"others have one{' behind ' + MARK if scoring == 'final_number' else ''}; correct or remove the line."
                )
            metrics = EXACT_MATCH_METRICS if scoring else LOSS_METRICS
            task = replace(task, metrics=metrics, kind="generation", scoring=scoring)
            task = replace(task, reading=describe(task, splits[split]))
        else:
            check_references(task, splits[split], table)
    return task, splits


def looks_like_custom_data(name: str) -> bool:
    """Return whether a task's name is a path: it has a slash, begins with a dot or tilde, or names a data file."""
    files = _split_columns(name)[0]
    return any(
        part.startswith((".", "~"))
        or "/" in part
        or "\\" in part
        or Path(part).suffix.lower() in CUSTOM_SUFFIXES
        or (part != "" and Path(part).is_dir())
        for part in (files, *files.split(","))
    )


def parse_custom_data(text: str) -> CustomData:
    """Parse `TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]` and find the files.

    Raises:
        DataNotFoundError: a file does not exist; lists the places searched.
        DataError: the syntax is different, or several files fit.
    """
    files, texts, label = _split_columns(text)
    text_columns = tuple(name.strip() for name in texts.split(",")) if texts.strip() else None
    if text_columns is not None and (len(text_columns) > 2 or not all(text_columns)):
        raise DataError(f"{text!r}: expected one or two text columns, got {texts!r}. Write {SYNTAX}.")
    train, validation = _find_files(files)
    return CustomData(train, validation, text_columns, label.strip() or None)


def _split_columns(text: str) -> tuple[str, str, str]:
    """Split off the columns, but neither a Windows drive letter nor a colon in the path of an existing file."""
    if expanded(text).exists():
        return text, "", ""
    parts = text.rsplit(":", 2)
    if len(parts[0]) == 1 and len(parts) > 1:
        parts[:2] = [":".join(parts[:2])]
    files, texts, label, *_ = [*parts, "", ""]
    return files, texts, label


def _find_files(text: str) -> tuple[Path, Path]:
    path = expanded(text)
    if not path.exists() and "," in text:
        commas = [i for i, character in enumerate(text) if character == ","]  # file names may have some, too
        pairs = [(expanded(text[:i]), expanded(text[i + 1 :])) for i in commas]
        missing = [next((path for path in pair if not path.is_file()), None) for pair in pairs]
        if None not in missing:
            raise DataNotFoundError(f"there is no data file {str(missing[0])!r}.")
        return pairs[missing.index(None)]
    if path.is_dir():
        candidates = [path / f"train{suffix}" for suffix in CUSTOM_SUFFIXES]
        found = [file for file in candidates if file.is_file()]
        if not found:
            raise DataNotFoundError(
                f"found no data in the folder {str(path)!r}; looked for {', '.join(map(str, candidates))}."
            )
        if len(found) > 1:
            raise DataError(f"{str(path)!r} has several training files; name one of {', '.join(map(str, found))}.")
        path = found[0]
    if not path.exists():
        raise DataNotFoundError(f"there is no data file or folder {text!r}.")
    regular_file(path)
    return path, _validation_file(path)


def _validation_file(train: Path) -> Path:
    """Find the file beside the training file whose name says validation; the same format comes first."""
    others = [suffix for suffix in CUSTOM_SUFFIXES if suffix != train.suffix]
    candidates = [train.with_name(f"{stem}{suffix}") for stem in VALIDATION_STEMS for suffix in (train.suffix, *others)]
    found = [path for path in candidates if path.is_file() and path != train]
    if not found:
        raise DataNotFoundError(
            f"{train} has no validation file beside it; looked for "
            f"{', '.join(f'{stem}{train.suffix}' for stem in VALIDATION_STEMS)} (and the formats {', '.join(others)}). Move a "
            f"tenth of the examples into {train.with_name('validation' + train.suffix)}, or name another file: {train},PATH."
        )
    return found[0]


def _guess_label_column(table: Table) -> str:
    """Return the one column that has a usual name for labels.

    Raises:
        DataError: none has, or several have.
    """
    found = [column for column in table.columns if column.lower() in LABEL_COLUMNS]
    if len(found) == 1:
        return found[0]
    why = f"it may be {' or '.join(found)}" if found else f"none is named {', '.join(LABEL_COLUMNS)}"
    raise _ambiguous(table, "label column", why)


def _guess_text_columns(table: Table, label_column: str) -> tuple[str, ...]:
    """Return the column or pair of columns with usual names; failing that, the only column besides the label.

    Raises:
        DataError: no names are known, or several are present.
    """
    present = {column.lower(): column for column in table.columns if column != label_column}
    known = [names for names in TEXT_COLUMNS if all(name in present for name in names)]
    # ("sentence",) does not compete with ("question", "sentence")
    known = [names for names in known if not any(set(names) < set(other) for other in known)]
    if len(known) == 1:
        return tuple(present[name] for name in known[0])
    if not known and len(present) == 1:
        return tuple(present.values())
    why = f"they may be {' or '.join('+'.join(names) for names in known)}" if known else "none has a usual name"
    raise _ambiguous(table, "text columns", why)


def _ambiguous(table: Table, what: str, why: str) -> DataError:
    return DataError(
        f"{table.path}: cannot tell the {what}: {why}. The file has: {', '.join(table.columns)}. Name the columns: {SYNTAX}."
    )


def _texts(table: Table, column: str) -> list[str]:
    values = table.column(column)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{table.where(i)}: the text column {column!r} holds {value!r}, not a text.")
    return values
