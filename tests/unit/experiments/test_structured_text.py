"""Files that people write: where they are malformed, and what is too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from glora.experiments.structured_text import MalformedFileError, read_mapping


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_json_and_yaml_hold_the_same(tmp_path: Path) -> None:
    expected = {"models": ["Δ (86M)"], "settings": {"epochs": 1}}
    json_text = '\ufeff{"models": ["Δ (86M)"], "settings": {"epochs": 1}}'
    assert read_mapping(written(tmp_path, "a.json", json_text)) == expected
    for name in ("a.yaml", "a.YML"):
        assert read_mapping(written(tmp_path, name, "models: [Δ (86M)]\nsettings:\n  epochs: 1\n")) == expected


def test_yaml_merges_are_no_repeats(tmp_path: Path) -> None:
    text = "base: &base {epochs: 1, seed: 0}\nchanged:\n  <<: *base\n  epochs: 2\n"
    assert read_mapping(written(tmp_path, "a.yaml", text))["changed"] == {"epochs": 2, "seed": 0}
    text = "a: &a {x: 1}\nc: {<<: &b {<<: *a, x: 2}}\nd: *b\n"
    assert read_mapping(written(tmp_path, "a.yaml", text))["d"] == {"x": 2}


DEEP = "[" * 60 + "]" * 60
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("name", "text", "place", "reason"),
    [
        (
            "a.json",
            '{"seeds": [0],\n "settings": {"epochs" 1}}',
            ": malformed JSON at line 2, column 24",
            "Expecting ':'",
        ),
        ("a.json", "", ": malformed JSON at line 1, column 1", "malformed JSON"),
        ("a.yaml", "seeds: [0]\nsettings: {epochs: 1\n", ": malformed YAML at line 3, column 1", "expected"),
        ("a.yaml", "seeds: [0]\nsummary: a\x07b\n", ": malformed YAML at line 2, column 11", "malformed YAML"),
        ("a.json", "[1]", "", "holds a list; expected names with values"),
        ("a.yaml", "", "", "holds nothing"),
        ("a.json", b"{\n\xff\xfe", ", line 2", "not UTF-8 text"),
        ("a.json", '{"seeds": [0], "settings": {"epochs": 1, "epochs": 2}}', "", "'epochs' is given more than once"),
        ("a.yaml", "a: 1\nb:\n  seeds: [0]\n  seeds: [1]\n", ", line 3", "'seeds' is given more than once"),
        ("a.toml", "", "", "must end in one of .json, .yaml, .yml"),
        ("a.json", f'{{"a": {DEEP}}}', "", "nested more than 50 deep"),
        ("a.json", '{"a": ' + "[" * 99_999, "", "nested more than 50 deep"),
        ("a.yaml", f"a: {DEEP}", ", line 1", "nested more than 50 deep"),
        ("a.yaml", "a: " + "[" * 3000, "", "nested more than 50 deep"),
        ("a.yaml", "a: &a [*a]", ", line 1", "nested more than 50 deep"),
        ("a.yaml", BOMB, "", "more than 2,000 values, aliases included"),
        ("a.yaml", MERGES, "", "more than 2,000 values, aliases included"),
        ("a.json", '{"seeds": [' + "0, " * 3000 + "0]}", "", "more than 2,000 values"),
        ("a.json", '{"seeds": [' + "0, " * 200_000 + "0]}", "", "has 600,014 bytes"),
        ("a.yaml", "a: !!bool foo", ": malformed YAML at line 1, column 4", "'foo' is not of the type bool"),
        (
            "a.yaml",
            "a: 2024-99-99",
            ": malformed YAML at line 1, column 4",
            "'2024-99-99' is not of the type timestamp",
        ),
        (
            "a.yaml",
            "a: !!python/object/apply:os.getcwd []",
            ": malformed YAML at line 1, column 4",
            "could not determine a constructor",
        ),
        ("a.yaml", "a: 2024-01-02", "", "datetime.date(2024, 1, 2) is a date; put it in quotes"),
        ("a.yaml", "? [a, b]\n: c", ": malformed YAML at line 1, column 3", "unhashable key"),
        ("a.yaml", "a: {on: 1}", "", "the key True is not a text; put it in quotes"),
        ("a.yaml", "a: !!set {x}", "", "is a set"),
        ("a.json", '{"a": "x\\ud83d"}', "", "half of a character's \\u pair"),
        ("a.yaml", 'a: "x\\ud83d"', "", "half of a character's \\u pair"),
        ("a.json", '{"a": ' + "1" * 5000 + "}", "", "a number has thousands of digits"),
        ("a.yaml", "a: 0x" + "f" * 5000, ": malformed YAML at line 1, column 4", "is not of the type int"),
        (
            "a.yaml",
            "? " + ":".join(["59"] * 3000) + "\n: 1",
            ": malformed YAML at line 1, column 3",
            "not of the type int",
        ),
    ],
)
def test_a_malformed_file_is_one_error_that_names_it(
    tmp_path: Path, name: str, text: str | bytes, place: str, reason: str
) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(MalformedFileError) as refused:
        read_mapping(path)
    assert str(refused.value).startswith(f"{path}{place}: ")
    assert reason in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.json"):
        read_mapping(tmp_path / "absent.json")
    with pytest.raises(IsADirectoryError, match="name a file"):
        read_mapping(tmp_path)
