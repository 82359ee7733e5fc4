"""A task of one's own: two data files with named columns.

On the command line it is written `TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]`:

    reviews/train.csv                                     the columns are guessed
    reviews/train.csv:text:stars                          one text
    pairs/train.tsv:premise,hypothesis:label              two texts
    train.jsonl,held_out.jsonl:question,answer:label      a validation file of another name
    pairs/                                                the folder's train.* and validation.* (or dev.*)

Integer and string labels are classes; a label column of decimal numbers (4.5, 3.0) makes the task a regression. Files whose
columns are those of prompts and written answers (see `exchanges`), with no column named as labels are, make it a generative
task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glora.experiments.data.conversations import find_layout
from glora.experiments.data.custom_conversations import read_custom_conversations
from glora.experiments.data.table_files import INTEGER, NUMBER, READERS, Table, column_names, read_table
from glora.experiments.data.task import (
    CLASSIFICATION_METRICS,
    REGRESSION_METRICS,
    DataError,
    DataNotFoundError,
    Examples,
    Kind,
    Rows,
    Task,
    TaskData,
    build_task_data,
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
MANY_CLASSES = 50
"""More classes than this, and more than half as many as examples, are taken for a mistake."""


@dataclass(frozen=True)
class OwnData:
    """Where the data is and which columns are meant; None means that they are guessed."""

    train: Path
    validation: Path
    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None


def looks_like_own_data(name: str) -> bool:
    """Whether a task's name is meant as a path: it has a slash, begins with a dot or tilde, or names a data file."""
    head = _split_columns(name)[0].split(",")[0]
    return (
        "/" in head
        or "\\" in head
        or head.startswith((".", "~"))
        or Path(head).suffix.lower() in READERS
        or (head != "" and Path(head).is_dir())
    )


def parse_own_data(text: str) -> OwnData:
    """Parse `TRAIN[,VALIDATION][:TEXT[,TEXT][:LABEL]]` and find the files.

    Raises:
        DataNotFoundError: a file is not there, listing what was looked for.
        DataError: it is not written in this way, or several files fit.
    """
    files, texts, label = _split_columns(text)
    text_columns = tuple(name.strip() for name in texts.split(",")) if texts.strip() else None
    if text_columns is not None and (len(text_columns) > 2 or not all(text_columns)):
        raise DataError(f"{text!r}: a task has one or two text columns, not {texts!r}. Write {SYNTAX}.")
    train, validation = _find_files(files)
    return OwnData(train, validation, text_columns, label.strip() or None)


def _split_columns(text: str) -> tuple[str, str, str]:
    """Split off the columns, but neither a Windows drive letter nor a colon in the path of an existing file."""
    if Path(text).expanduser().exists():
        return text, "", ""
    parts = text.rsplit(":", 2)
    if len(parts[0]) == 1 and len(parts) > 1:
        parts[:2] = [":".join(parts[:2])]
    return (*parts, "", "")[:3]  # type: ignore[return-value]


def _find_files(text: str) -> tuple[Path, Path]:
    path = Path(text).expanduser()
    if not path.exists() and "," in text:
        train_text, _, validation_text = text.partition(",")
        train, validation = Path(train_text).expanduser(), Path(validation_text).expanduser()
        for given in (train, validation):
            if not given.is_file():
                raise DataNotFoundError(f"there is no data file {str(given)!r}.")
        return train, validation
    if path.is_dir():
        train = _only_file(path, "train", tuple(READERS))
        return train, _validation_file(train)
    if not path.is_file():
        raise DataNotFoundError(f"there is no data file or folder {text!r}.")
    return path, _validation_file(path)


def _only_file(folder: Path, stem: str, suffixes: Sequence[str]) -> Path:
    found = [folder / f"{stem}{suffix}" for suffix in suffixes if (folder / f"{stem}{suffix}").is_file()]
    if not found:
        looked_for = ", ".join(str(folder / f"{stem}{suffix}") for suffix in suffixes)
        raise DataNotFoundError(f"found no data in the folder {str(folder)!r}; looked for {looked_for}.")
    if len(found) > 1:
        raise DataError(f"several files could be meant: {', '.join(map(str, found))}. Name one of them.")
    return found[0]


def _validation_file(train: Path) -> Path:
    """Find the file beside the training file whose name says validation; the same format comes first."""
    suffixes = (train.suffix, *(s for s in READERS if s != train.suffix))
    candidates = [train.with_name(f"{stem}{suffix}") for stem in VALIDATION_STEMS for suffix in suffixes]
    found = [path for path in candidates if path.is_file() and path != train]
    if not found:
        raise DataNotFoundError(
            f"{train} has no validation file beside it; looked for "
            f"{', '.join(f'{stem}{train.suffix}' for stem in VALIDATION_STEMS)} (and the formats "
            f"{', '.join(s for s in READERS if s != train.suffix)}). Put a part of the examples, a tenth or so, "
            f"into {train.with_name('validation' + train.suffix)} and out of the training file, or name another "
            f"file: {train},PATH."
        )
    return found[0]


def kind_of(data: OwnData) -> Kind:
    """What kind of task the files are, by the names of their columns; a file that cannot be read is found out later."""
    if data.text_columns is not None or data.label_column is not None:
        return "classification"
    columns = column_names(data.train)
    labelled = any(column.lower() in LABEL_COLUMNS for column in columns)
    return "generation" if find_layout(columns) is not None and not labelled else "classification"


def custom_task(
    train: str | Path,
    validation: str | Path,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    *,
    name: str | None = None,
    train_limit: int | None = None,
    eval_limit: int | None = None,
) -> TaskData:
    """Load a task of one's own from two files: CSV, TSV, JSONL or Parquet.

    Args:
        train: file with the training examples.
        validation: file with the examples to evaluate on.
        text_columns: one or two columns of text, such as `("premise", "hypothesis")`; guessed if None.
        label_column: the column to predict; guessed if None.
        name: what the task is called in results; by default the training file's path.
        train_limit: use at most this many training examples.
        eval_limit: evaluate on at most this many.

    Raises:
        DataNotFoundError: a file is missing.
        DataError: a malformed line, a missing or ambiguous column, a label that does not occur in training.
    """
    texts = tuple(text_columns) if text_columns is not None else None
    data = OwnData(Path(train), Path(validation), texts, label_column)
    task, splits = read_own_data(data, name or str(train))
    return build_task_data(
        task,
        splits["train"],
        {"validation": splits["validation"]},
        train_limit=train_limit,
        eval_limit=eval_limit,
    )


def read_own_data(data: OwnData, name: str, *, only_train: bool = False) -> tuple[Task, Mapping[str, Examples]]:
    """Read both files, or the training file alone: what the task turned out to be, and split -> rows.

    Raises:
        DataNotFoundError, DataError: see `custom_task`.
    """
    train = read_table(data.train)
    tables = {"train": train} if only_train else {"train": train, "validation": read_table(data.validation)}
    if kind_of(data) == "generation":
        return read_custom_conversations(tables, name)
    label_column = data.label_column or guess_label_column(train)
    text_columns = data.text_columns or guess_text_columns(train, label_column)
    label_names, parse = _label_parser(train, label_column)
    splits = {}
    for split, table in tables.items():
        texts = [_texts(table, column) for column in text_columns]
        labels = [parse(table, i, value) for i, value in enumerate(table.column(label_column))]
        splits[split] = Rows(texts[0], texts[1] if len(texts) == 2 else None, labels)
    metrics = REGRESSION_METRICS if label_names is None else CLASSIFICATION_METRICS
    return Task(name, f"data from {data.train}", metrics, metrics[0], label_names), splits


def guess_label_column(table: Table) -> str:
    """Take the one column that has a usual name for labels.

    Raises:
        DataError: none has, or several have.
    """
    found = [column for column in table.columns if column.lower() in LABEL_COLUMNS]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"{table.path}: cannot tell which column is the label: "
        + (f"it may be {' or '.join(found)}." if found else f"none is called {', '.join(LABEL_COLUMNS)}.")
        + f" The file has: {', '.join(table.columns)}. Name the columns: {SYNTAX}."
    )


def guess_text_columns(table: Table, label_column: str) -> tuple[str, ...]:
    """Take the column or pair of columns with usual names; failing that, the only column besides the label.

    Raises:
        DataError: no names are known, or several are there.
    """
    present = {column.lower(): column for column in table.columns if column != label_column}
    known = [names for names in TEXT_COLUMNS if all(name in present for name in names)]
    # ("sentence",) is no rival of ("question", "sentence")
    known = [names for names in known if not any(set(names) < set(other) for other in known)]
    if len(known) == 1:
        return tuple(present[name] for name in known[0])
    if not known and len(present) == 1:
        return tuple(present.values())
    raise DataError(
        f"{table.path}: cannot tell which columns are the texts: "
        + (f"they may be {' or '.join('+'.join(n) for n in known)}." if known else "no usual name is among them.")
        + f" The file has: {', '.join(table.columns)}. Name the columns: {SYNTAX}."
    )


def _texts(table: Table, column: str) -> list[str]:
    values = table.column(column)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{table.where(i)}: the text column {column!r} holds {value!r}, which is no text.")
    return values


LabelParser = Callable[[Table, int, Any], Any]


def _label_parser(train: Table, column: str) -> tuple[tuple[str, ...] | None, LabelParser]:
    """Decide from the training labels what the task is: class names (None: regression) and how to read a label."""
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
        raise DataError(
            f"{train.path}: every row has the label {classes[0]!r} in column {column!r}; there is nothing to learn."
        )
    if len(classes) > MANY_CLASSES and 2 * len(classes) > len(values):
        raise DataError(
            f"{train.path}: column {column!r} has {len(classes)} different labels in {len(values)} rows, which "
            "are hardly classes. For a regression every label must be a decimal number (3.0, not 3)."
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
    """Whether all are numbers, and at least one is written with a point or an exponent (in typed files: a float)."""
    if typed:
        return all(isinstance(v, int | float) for v in values) and any(isinstance(v, float) for v in values)
    return all(NUMBER.fullmatch(v.strip()) for v in values) and not all(INTEGER.fullmatch(v.strip()) for v in values)


def _in_order(names: set[str]) -> tuple[str, ...]:
    """Integers by value, anything else by alphabet."""
    if all(INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _number(table: Table, row: int, value: Any) -> float:
    text = str(value).strip()
    if not NUMBER.fullmatch(text):
        raise DataError(f"{table.where(row)}: the label {value!r} is not a number; this is a regression.")
    return float(text)
