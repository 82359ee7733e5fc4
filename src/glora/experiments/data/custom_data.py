r"""Custom data: a task from two files with named columns.

On the command line it is written `TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]`:

    reviews/train.csv                                     the columns are guessed
    reviews/train.csv:text:stars                          one text
    pairs/train.tsv:premise,hypothesis:label              two texts
    train.jsonl,held_out.jsonl:question,answer:label      a validation file of another name
    pairs/                                                the folder's train.* and validation.* (or dev.*)

Integer and string labels are classes; a label column of decimal numbers (4.5, 3.0) makes the task a regression. Files with the
columns of prompts and written answers (see `conversations`), and no column named as labels are, make it a generative task.
Its scoring follows from the training answers: the final number behind `####` if each has one, as in GSM8K; the content of
\boxed{} if each has one, as in MATH; otherwise only the loss is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glora.experiments.data.answers import find_scoring
from glora.experiments.data.conversations import Conversations, check_references, find_columns, read_conversations
from glora.experiments.data.table_files import CUSTOM_SUFFIXES, INTEGER, NUMBER, Table, column_names, read_table
from glora.experiments.data.task import (
    CLASSIFICATION_METRICS,
    EXACT_MATCH_METRICS,
    LOSS_METRICS,
    REGRESSION_METRICS,
    DataError,
    DataNotFoundError,
    Examples,
    Kind,
    Rows,
    Task,
)

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
MAX_CLASSES = 50
"""More classes than this, and more than half as many as examples, are a mistake."""


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

    def _read_labelled(self, task: Task, tables: Mapping[str, Table]) -> tuple[Task, dict[str, Rows]]:
        train = tables["train"]
        label_column = self.label_column or _guess_label_column(train)
        text_columns = self.text_columns or _guess_text_columns(train, label_column)
        label_names, parse = _label_parser(train, label_column)
        splits = {}
        for split, table in tables.items():
            texts = [_texts(table, column) for column in text_columns]
            labels = [parse(table, i, value) for i, value in enumerate(table.column(label_column))]
            splits[split] = Rows(texts[0], texts[1] if len(texts) == 2 else None, labels)
        metrics = REGRESSION_METRICS if label_names is None else CLASSIFICATION_METRICS
        return replace(task, metrics=metrics, label_names=label_names), splits


def _read_written(task: Task, tables: Mapping[str, Table]) -> tuple[Task, dict[str, Conversations]]:
    train = tables["train"]
    columns = find_columns(train.columns)
    assert columns is not None, "CustomData.kind recognizes prompts and answers"
    splits: dict[str, Conversations] = {}
    for split, table in tables.items():
        if find_columns(table.columns) != columns:
            raise DataError(
                f"{table.path}: the columns are {', '.join(table.columns)}; expected those of {train.path.name}: "
                f"{', '.join(train.columns)}."
            )
        where = [table.where(i) for i in range(len(table.rows))]
        splits[split] = read_conversations(table.records(), columns, where, empty_answers=False)
        if split == "train":
            scoring = find_scoring(splits[split].answers)
            metrics = EXACT_MATCH_METRICS if scoring else LOSS_METRICS
            task = replace(task, metrics=metrics, kind="generation", scoring=scoring)
        else:
            check_references(task, splits[split], where)
    return task, splits


def looks_like_custom_data(name: str) -> bool:
    """Return whether a task's name is a path: it has a slash, begins with a dot or tilde, or names a data file."""
    head = _split_columns(name)[0].split(",")[0]
    return (
        "/" in head
        or "\\" in head
        or head.startswith((".", "~"))
        or Path(head).suffix.lower() in CUSTOM_SUFFIXES
        or (head != "" and Path(head).is_dir())
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
    if Path(text).expanduser().exists():
        return text, "", ""
    parts = text.rsplit(":", 2)
    if len(parts[0]) == 1 and len(parts) > 1:
        parts[:2] = [":".join(parts[:2])]
    files, texts, label, *_ = [*parts, "", ""]
    return files, texts, label


def _find_files(text: str) -> tuple[Path, Path]:
    path = Path(text).expanduser()
    if not path.exists() and "," in text:
        train, validation = (Path(part).expanduser() for part in text.split(",", 1))
        for given in (train, validation):
            if not given.is_file():
                raise DataNotFoundError(f"there is no data file {str(given)!r}.")
        return train, validation
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
    if not path.is_file():
        raise DataNotFoundError(f"there is no data file or folder {text!r}.")
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


LabelParser = Callable[[Table, int, Any], Any]


def _label_parser(train: Table, column: str) -> tuple[tuple[str, ...] | None, LabelParser]:
    """Decide the task from the training labels: return the class names (None: regression) and how to read a label."""
    values = train.column(column)
    for i, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{train.where(i)}: the label column {column!r} is empty.")
    if _are_decimal_numbers(values, typed=train.typed):
        return None, _number
    for i, value in enumerate(values):
        if not isinstance(value, str | int):
            raise DataError(
                f"{train.where(i)}: the label {value!r} is a {type(value).__name__}; labels are all strings, "
                "all integers, or all decimal numbers."
            )
    classes = _in_order({str(value) for value in values})
    if len(classes) < 2:
        raise DataError(f"{train.path}: every row has the label {classes[0]!r} in column {column!r}; give two classes.")
    if len(classes) > MAX_CLASSES and 2 * len(classes) > len(values):
        raise DataError(
            f"{train.path}: column {column!r} has {len(classes)} different labels in {len(values)} rows, too many for "
            "classes. For a regression every label must be a decimal number (3.0, not 3)."
        )
    numbers = {name: i for i, name in enumerate(classes)}

    def class_number(table: Table, row: int, value: Any) -> int:
        if str(value) not in numbers:
            shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise DataError(
                f"{table.where(row)}: the label {value!r} does not occur in {train.path.name}; the labels are {shown}."
            )
        return numbers[str(value)]

    return classes, class_number


def _are_decimal_numbers(values: list[Any], *, typed: bool) -> bool:
    """Return whether all are numbers, and at least one has a point or an exponent (in typed files: is a float)."""
    if typed:
        return all(isinstance(v, int | float) for v in values) and any(isinstance(v, float) for v in values)
    return all(NUMBER.fullmatch(v.strip()) for v in values) and not all(INTEGER.fullmatch(v.strip()) for v in values)


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Order integers by value and anything else by alphabet; 1, 01 and +1 by alphabet too, not by their hashes."""
    if all(INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _number(table: Table, row: int, value: Any) -> float:
    text = str(value).strip()
    if not NUMBER.fullmatch(text):
        raise DataError(f"{table.where(row)}: the label {value!r} is not a number, which a regression needs.")
    return float(text)
