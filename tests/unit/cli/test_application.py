"""Errors before any command begins."""

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
    ],
)
def test_wrong_usage_is_refused_by_the_parser(call, arguments: str, expected: str) -> None:
    result = call(*arguments.split())
    assert result.code == 2
    assert expected in result.err


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
