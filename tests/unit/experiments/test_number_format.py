"""Numbers and names as text."""

from __future__ import annotations

import unicodedata

import pytest

from glora.experiments.number_format import bytes_text, distinct_names, numbered, printable, short_name


def test_memory() -> None:
    assert bytes_text(1.5 * 2**30) == "1.50 GiB"
    assert bytes_text(300 * 2**20) == "300 MiB"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("microsoft/deberta-v3-base", "microsoft/deberta-v3-base"),
        ("rte", "rte"),
        ("/home/me/models/mine", "mine"),
        ("../data/pairs.csv", "pairs.csv"),
        ("~/models/mine/", "mine"),
        ("C:\\models\\mine", "mine"),
        ("data/sub/pairs.csv", "pairs.csv"),
    ],
)
def test_names_without_folders(name: str, shown: str) -> None:
    assert short_name(name) == shown


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["/x/a/train.csv", "/x/b/train.csv", "/x/dev.csv"], ["a/train.csv", "b/train.csv", "dev.csv"]),
        (["/x/a/final", "/y/a/final", "C:\\x\\final"], ["x/a/final", "y/a/final", "x/final"]),
        (["rte", "/data/rte", "org/rte"], ["rte", "data/rte", "org/rte"]),
        (["/x/final", "/x/final/"], ["final", "final (2)"]),
        (["/x/caf\u00e9", "/x/cafe\u0301"], ["caf\u00e9", "caf\u00e9 (2)"]),
    ],
)
def test_names_with_the_folders_that_tell_them_apart(names: list[str], shown: list[str]) -> None:
    found = distinct_names(names)
    assert sorted(unicodedata.normalize("NFC", found[name]) for name in names) == sorted(shown)
    assert len(found) == len(names)


def test_labels_that_look_alike_are_numbered() -> None:
    assert numbered(["a", "b", "a", "a (2)", "x\x1b", "x\\x1b"]) == [
        *("a", "b", "a (2)", "a (2) (2)"),
        *("x\x1b", "x\\x1b (2)"),
    ]


def test_control_characters_are_written_out() -> None:
    assert printable("a\x1b[31m\u202eb\ud800\nc\tü–×") == r"a\x1b[31m\u202eb\ud800 c ü–×"
