"""Every text is shown as it is written."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

import glora
from glora.experiments.terminal import Terminal
from glora.experiments.training.progress import BarProgress, LineProgress

NAME = "a[bold]b[/]:smile:é\x1b[31m\x9b2J\u202ec\ud800"
SHOWN = r"a[bold]b[/]:smile:é\x1b[31m\x9b2J\u202ec\ud800"


def shown(*renderables: object, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Terminal(file=file, width=200, force_terminal=True, color_system=None, _environ={}).print(*renderables, sep="\n")
    file.seek(0)
    return file.read()


def test_a_name_is_neither_markup_nor_an_emoji_nor_does_it_steer_the_terminal() -> None:
    table = Table(title=NAME)
    table.add_column(NAME)
    table.add_row(NAME)
    assert shown(NAME, table).count(SHOWN) == 4


@pytest.mark.parametrize("secret", ["me:secret", "secret", "me:sec@ret", "me:sec/ret", "me@x:secret"])
def test_credentials_of_a_hub_or_proxy_are_hidden(secret: str) -> None:
    """HF_ENDPOINT=https://me:secret@mirror/hf, which huggingface_hub quotes where it cannot connect."""
    text = f"We couldn't connect to 'https://{secret}@mirror:8080/hf' to load the files"
    table = Table()
    table.add_column(text)
    assert shown(text, table, ValueError(text)).count("'https://***@mirror:8080/hf'") == 3
    assert shown("https://h/a, me@x; postgresql://me:***@h/d") == "https://h/a, me@x; postgresql://me:***@h/d\n"


def test_what_an_encoding_lacks_is_no_error() -> None:
    assert shown("é→", encoding="latin-1") == "é?\n"


@pytest.mark.parametrize("progress", [BarProgress, LineProgress])
def test_progress_shows_names_as_they_are(progress: type, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Progress] = []
    start = Progress.start
    monkeypatch.setattr(Progress, "start", lambda self: (bars.append(self), start(self))[1])
    console = Terminal(file=io.StringIO(), width=200, _environ={})
    with progress(console) as running:
        running.begin(1, 4)
        running.run_begins(None, 4, name=NAME)
        running.preparing(NAME)
        running.evaluation_begins(NAME, 2)
        running.say(NAME)
        for bar in bars:
            console.print(bar)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("a[bold]b[/]:smile:é\\x1b[31m") >= 3
    assert not set("\x1b\x9b\u202e") & set(text)


def test_nothing_is_printed_past_the_terminal() -> None:
    """Another console, or a text that is read as markup, would show a name as something else."""
    sources = {path.name: path.read_text() for path in Path(glora.__file__).parent.rglob("*.py")}
    del sources["terminal.py"]
    assert [name for name, text in sources.items() if re.search(r"\bConsole\(|from_markup|rich\.markup", text)] == []
    assert [name for name, text in sources.items() if text.count("TextColumn(") != text.count("markup=False")] == []
