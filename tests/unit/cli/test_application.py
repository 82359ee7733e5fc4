"""Mistakes that are found before anything is loaded."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from glora import cli

COMMANDS = sorted(name for name in cli.app if not name.startswith("-"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("compare", "--output requires"),
        ("compare --rank eight -o x", "--rank"),
        ("comparre", '"compare"'),
        ("compare --ouput x", "unknown option --ouput; did you mean '--output'?"),  # not: --output is missing
        ("compare --ouput=x --lr high", "unknown option --ouput; did you mean '--output'?"),
        ("search --trails 3 --tsk rte -n", "'?\nunknown option --tsk; did you mean '--task'"),
        ("compare --preset demmo -o x", "unknown preset 'demmo'; did you mean 'demo'"),
        ("compare --seeds 0,one -o x", "seeds='0,one': seeds are whole numbers"),
        ("list method", "cannot list 'method'; did you mean 'methods'"),
        ("report nowhere", "no finished run"),
        ("export nowhere -o out", "--uniform pads every layer"),
        ("export nowhere --uniform -o out", "there is no folder 'nowhere'"),
        ("ranks --format toml", 'Invalid value "toml" for --format. Choose from: "json", "yaml", "python"'),
        ("ranks --min-rank 0", "min_rank=0 must be at least 1"),
        ("ranks --batches 0", "batches=0 must be at least 1"),
        ("ranks --task rtee", "unknown task 'rtee'"),
        ("ranks --rank 0", "rank=0"),
    ],
)
def test_wrong_usage_is_one_message(
    call, arguments: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments.split())
    assert result.code == 2
    assert expected in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["compress", "adapter", "--keep", "25%", "--output", ""], "--output"),
        (["compress", "adapter", "--keep", "25%", "--output="], "--output"),
        (["export", "adapter", "--uniform", "-o", " "], "-o"),
        (["compare", "--plan", "--output", ""], "--output"),
        (["run", "experiment.json", "--output="], "--output"),
        (["search", "--plan", "--output", "x", "--task", ""], "--task"),
        (["report", ""], "an argument"),
    ],
)
def test_an_empty_name_is_not_the_present_folder(
    call, arguments: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.code == 2
    assert f"{name} is empty; give a value" in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_examples_that_parse(call, command: str) -> None:
    examples = re.findall("^Example: glora (.*)$", call(command, "--help").out, re.MULTILINE)
    assert 1 <= len(examples) <= 2
    for example in examples:
        function, bound, _ = cli.app.parse_args(shlex.split(example))
        assert function is cli.app[command].default_command
        assert bound.args or bound.kwargs
