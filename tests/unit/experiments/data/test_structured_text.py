"""Files that are malformed are told where; keys that are given twice are told at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from glora.experiments.data.structured_text import MalformedFileError, read_mapping


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


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", '{"seeds": [0],\n "settings": {"epochs" 1}}', "malformed JSON at line 2, column 24: Expecting ':'"),
        ("a.json", "", "malformed JSON at line 1, column 1"),
        ("a.yaml", "seeds: [0]\nsettings: {epochs: 1\n", "malformed YAML at line 3, column 1: expected"),
        ("a.yaml", "seeds: [0]\nsummary: a\x07b\n", "malformed YAML at line 2, column 11"),
        ("a.json", "[1]", "holds a list; expected names with values"),
        ("a.yaml", "", "holds nothing"),
        ("a.json", b"\xff\xfe", "not UTF-8 text"),
        ("a.json", '{"seeds": [0], "settings": {"epochs": 1, "epochs": 2}}', "epochs is given more than once"),
        ("a.yaml", "seeds: [0]\nseeds: [1]\n", "seeds is given more than once"),
        ("a.toml", "", "must end in one of .json, .yaml, .yml"),
    ],
)
def test_a_malformed_file_is_told_where(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(MalformedFileError) as refused:
        read_mapping(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert reason in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_mapping(tmp_path / "absent.json")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_mapping(tmp_path)
