"""The report: complete, readable anywhere, made from records alone."""

from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.records import store
from glora.experiments.records.schema import RunRecord
from glora.experiments.records.store import NotWrittenError, RecordError, write_record
from glora.experiments.report.cells import as_markdown, as_rich, cell_text
from glora.experiments.report.chart_style import ReportChart
from glora.experiments.report.content import report_content
from glora.experiments.report.summary import summarise
from glora.experiments.report.tables import group_tables
from glora.experiments.report.write import NoFinishedRunsError, report_markdown, write_report
from glora.experiments.search.record import SearchRecord, TunedMethod
from glora.experiments.terminal import Terminal
from unit.experiments.synthetic_records import failed_run, finished_run, study

METHODS = ("lora", "adalora", "glora")
NASTY = "<b>$x$</b> https://a.b"


def report_of(folder: Path, records: list[RunRecord]) -> tuple[str, str]:
    """The text of report.md and what was printed."""
    for record in records:
        write_record(folder, record)
    console = Terminal(width=120, record=True, file=io.StringIO())
    path = write_report(folder, console=console)
    assert path == folder / "report.md"
    return path.read_text(encoding="utf-8"), console.export_text()


@pytest.fixture(scope="module")
def study_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("study")
    records = [*study(METHODS, (0, 1, 2)), failed_run("ValueError: out of cheese\nsecond line", method="shuffled")]
    return folder, *report_of(folder, records)


def test_the_table_holds_hand_computed_numbers(tmp_path: Path) -> None:
    records = [
        finished_run(method=method, seed=seed, final={"accuracy": accuracy}, train_seconds=seconds)
        for method, seed, accuracy, seconds in [
            ("lora", 0, 0.80, 100),
            ("lora", 1, 0.82, 100),
            ("lora", 2, 0.84, 100),
            ("glora", 0, 0.81, 101),
            ("glora", 1, 0.84, 102),
            ("glora", 2, 0.87, 103),
        ]
    ]
    markdown, printed = report_of(tmp_path, records)
    assert "| LoRA | 82.0 ± 2.0 | 3 |" in markdown
    assert "| GLoRA by gradient norm | 84.0 ± 3.0 | 3 |" in markdown
    # Differences 1, 2, 3 points: 2 ± 4.3027 / sqrt(3) = 2 ± 2.484.
    assert r"| GLoRA by gradient norm | no difference shown | +2.00 \[-0.48, +4.48] | 3 |" in markdown
    assert r"| 1.020 ± 0.010 | \[0.995, 1.045] |" in markdown  # 1.02 ± 4.3027 · 0.01 / sqrt(3)
    for number in ("82.0 ± 2.0", "84.0 ± 3.0", "+2.00 [-0.48, +4.48]", "1.020 ± 0.010"):
        assert number in printed


def test_failed_runs_are_listed_with_the_first_line_of_their_error(study_report: tuple[Path, str, str]) -> None:
    for text in study_report[1:]:
        assert "shuffled, seed 0 failed: ValueError: out of cheese" in text
        assert "second line" not in text
    assert study_report[1].startswith("# Fine-tuning methods compared\n\n## ")
    assert "- 9 finished runs, 1 failed; " in study_report[1]


def test_every_picture_is_linked_by_a_relative_path_that_exists(study_report: tuple[Path, str, str]) -> None:
    folder, markdown, _ = study_report
    linked = re.findall(r"^!\[.+\]\((.+)\)$", markdown, flags=re.MULTILINE)
    assert len(linked) == 4
    assert not [path for path in linked if Path(path).is_absolute() or not (folder / path).is_file()]


def test_how_the_runs_were_made_is_told(study_report: tuple[Path, str, str]) -> None:
    _, markdown, _ = study_report
    for expected in (
        "Machine: Synthetic CPU, 2 cores, 8.00 GiB, no accelerator, 1 torch thread",
        "glora 0.1.0",
        "torch 2.13.0",
        "3,840 train, 500 validation (fingerprint 0123456789abcdef)",
        r"| learning\_rate | 0.0002 |",
        "- seed: 0, 1, 2",
        "- method: lora, adalora, glora",
        "What limits this comparison",
    ):
        assert expected in markdown
    shown = {name for name in SETTINGS if f"| {name.replace('_', chr(92) + '_')} |" in markdown}
    assert {"lora_alpha", "warmup_steps", "train_limit", "keep"} < shown
    assert not {"temperature", "energy", "start_factor", "report_to", "data_dir"} & shown, "without effect here"
    assert not re.search(r"\| (None|default) \|", markdown)
    for row in (r"lora\_alpha | 16", r"train\_limit | all 3,840", r"warmup\_steps | 120 steps", "keep | norm"):
        assert f"| {row} |" in markdown


def test_no_folder_of_the_machine_is_in_the_report(tmp_path: Path) -> None:
    records = study(
        ("lora", "glora"), (0,), model="/srv/models/mine", task="../private/pairs.csv", data_dir="/srv/glue"
    )
    markdown, printed = report_of(tmp_path, records)
    for text in (markdown, printed):
        assert "pairs.csv · mine · rank 8" in text
        assert "/srv" not in text
        assert "private" not in text
        assert str(tmp_path) not in text


def test_what_differs_between_runs_is_told(tmp_path: Path) -> None:
    markdown, _ = report_of(tmp_path, [*study(("lora",), (0,)), *study(("glora",), (0,), epochs=5.0)])
    assert "- epochs: 3, 5" in markdown
    assert "| epochs |" not in markdown


def test_each_comparison_begins_with_its_conclusion(tmp_path: Path) -> None:
    markdown, printed = report_of(
        tmp_path, [*study(METHODS, (0, 1, 2), task="rte"), *study(METHODS, (0,), task="cola")]
    )
    cola, rte = markdown.partition("## rte")[::2]
    assert re.search(r"LoRA, AdaLoRA and GLoRA .*all-MiniLM-L6-v2 .*cola \(1 seed each\)", cola)
    assert re.search("Fewer than 3 seeds .*AdaLoRA and GLoRA .*LoRA", cola)
    assert rte.index("were trained with") < rte.index("**Results")
    assert re.search(r"all-MiniLM-L6-v2 .*rte \(3 seeds each\)", " ".join(printed.split()))


def test_an_empty_folder_says_which_command_makes_runs(tmp_path: Path) -> None:
    with pytest.raises(NoFinishedRunsError, match="no finished run .*glora compare --output"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failures_alone_are_named_in_the_error(tmp_path: Path) -> None:
    record = failed_run("FileNotFoundError: no train.tsv")
    write_record(tmp_path, record)
    with pytest.raises(NoFinishedRunsError, match=": 1 run failed") as caught:
        write_report(tmp_path)
    assert f"{record.key}: FileNotFoundError: no train.tsv" in str(caught.value)


def test_a_broken_record_stops_the_report_and_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, finished_run())
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(RecordError, match=re.escape(path.name)):
        write_report(tmp_path)


def test_the_same_records_give_the_same_report(study_report: tuple[Path, str, str]) -> None:
    folder, markdown, _ = study_report
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(folder, console=Terminal(quiet=True))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown


def test_names_cannot_break_the_markdown_tables_or_the_terminal(tmp_path: Path) -> None:
    markdown, printed = report_of(tmp_path, study(("lora", "gl|o_ra*[x]$\x1b[31m</script>"), (0,)))
    rows = [line for line in markdown.splitlines() if line.startswith("| gl")]
    assert rows
    assert all(row.startswith(r"| gl\|o\_ra\*\[x]\$\\x1b\[31m\</script> |") for row in rows)
    assert "\x1b" not in markdown + printed


def test_notes_and_titles_are_escaped_as_well(tmp_path: Path) -> None:
    tuned = TunedMethod(
        **{
            "task": "rte",
            "model": RunConfig().model,
            "rank": 8,
            "method": "lora",
            "searched": {},
            "best": {"x": NASTY},
        },
        **{"best_value": 0.5, "best_trial": "1", "metric": "accuracy", "direction": "maximize", "trials": {}},
        **{"examples": {"train": 1, "tuning": 1}, "data_fingerprint": "0"},
    )
    search = SearchRecord(
        **{"name": "s", "trials": 1, "sampler": f"# {NASTY}", "pruner": NASTY, "held_out": 0.1, "trial_seed": 9},
        **{"seeds": [0], "methods": [tuned]},
    )
    markdown = report_markdown(report_content(summarise([finished_run(task="rte")]), search))
    assert "tuned" in markdown
    assert not re.search(r"(?<!\\)<b>|(?<!\\)\$x|^# <|https://", markdown, flags=re.MULTILINE)


def test_terminal_tables_hold_the_rows_of_the_markdown_ones() -> None:
    (group,) = summarise(study(METHODS, (0, 1, 2)))
    tables = group_tables(group)
    shown = [as_rich(table) for table in tables]
    assert [table.row_count for table in shown] == [len(table.rows) for table in tables] == [3, 2, 3, 3, 3]
    for table in tables:
        lines = as_markdown(table).splitlines()
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_terminal_of_80_columns_tears_no_word_apart(seeds: tuple[int, ...]) -> None:
    (group,) = summarise(study(METHODS, seeds))
    for table in group_tables(group):
        console = Terminal(file=io.StringIO(), width=80)
        console.print(as_rich(table))
        shown = console.file.getvalue().split()
        words = " ".join([*table.columns, *(cell_text(cell) for row in table.rows for cell in row)]).replace(
            "(n = ", "(n="
        )
        assert set(words.split()) <= set(shown)


def test_a_table_that_is_wider_than_the_terminal_keeps_its_last_columns(tmp_path: Path) -> None:
    for record in study(("lora", "glora:rule=spectrum:average_rank=2"), (0, 1, 2)):
        write_record(tmp_path, record)
    console = Terminal(file=io.StringIO(), width=60)
    write_report(tmp_path, console=console)
    printed = console.file.getvalue()
    for word in ("verdict", "difference", "seeds", "peak"):
        assert re.search(rf"\b{word}\b", printed), word


def test_an_interval_of_times_has_a_column_from_three_seeds_on() -> None:
    for seeds, there in ((0, 1), False), ((0, 1, 2), True):
        (group,) = summarise(study(METHODS, seeds))
        assert ("95 % interval" in group_tables(group)[-2].columns) is there


def test_the_report_reads_records_and_loads_nothing_that_trains(tmp_path: Path) -> None:
    for record in study(("lora", "glora"), (0,)):
        write_record(tmp_path, record)
    script = (
        "import json, sys\n"
        "from glora.experiments.terminal import Terminal\n"
        "from glora.experiments.report.write import write_report\n"
        f"write_report({str(tmp_path)!r}, console=Terminal(quiet=True))\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=300)
    loaded = set(json.loads(finished.stdout.splitlines()[-1]))
    assert not loaded & {
        "datasets",
        "sklearn",
        "optuna",
        "glora.experiments.training.run",
        "glora.experiments.data.registry",
    }


TASKS = (
    *("/d/a/train.csv", "/d/b/train.csv", "/d/b/Train.csv", "/d/sales_$5_to_$10.csv", "/d/x\x1b[31m\u202e.csv"),
    *(f"/d/{letter * 80}.csv" for letter in "数据é"),
)


def test_comparisons_are_told_apart_by_heading_and_picture() -> None:
    models = ("/m/a/final", "/m/b/final")
    records = [finished_run(method="glora", task=task, model=model) for task in TASKS for model in models]
    content = report_content(summarise([run.model_copy(update={"metrics": [], "norms": []}) for run in records]))
    headings = [section.heading for section in content.sections]
    assert "a/train.csv · b/final · rank 8" in headings
    assert "sales_$5_to_$10.csv · a/final · rank 8" in headings
    assert not any("/d/" in heading or "/m/" in heading for heading in headings)
    pictures = [chart.name for section in content.sections for chart in section.charts]
    assert len(set(headings)) == len(set(pictures)) == len(pictures) == len(records)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,190}", name) for name in pictures)
    for line, names in (("task: ", TASKS), ("model: ", models)):
        (shown,) = (each for each in content.provenance if each.startswith(line))
        assert len(set(shown.removeprefix(line).split(", "))) == len(names)


class Panic(BaseException):
    """As a renderer raises that is written in Rust."""


@pytest.mark.parametrize("error", [ValueError("too large\nsecond line"), Panic("unwrap")])
def test_a_picture_that_cannot_be_drawn_costs_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def png(chart: ReportChart) -> bytes:
        if "-time" in chart.name:
            raise error
        return b"drawn"

    monkeypatch.setattr(ReportChart, "png", png)
    markdown, printed = report_of(tmp_path, study(("lora", "glora"), (0,)))
    assert "pictures/rte-" not in markdown.partition("-time.png")[0]
    assert "-time.png" not in markdown
    assert len(re.findall(r"^!\[", markdown, flags=re.MULTILINE)) == len(list((tmp_path / "pictures").iterdir())) == 2
    (line,) = (line for line in " ".join(printed.split()).split("•")[-1:] if "1 picture could not be drawn" in line)
    assert str(error).partition("\n")[0] in line
    assert "second line" not in line


def test_the_report_is_complete_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: ReportChart) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReportChart, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report_of(tmp_path, study(("lora", "glora"), (0,)))
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "report.html").is_file()


def test_no_picture_is_written_through_a_symbolic_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReportChart, "png", lambda _: b"drawn")
    records = study(("lora", "glora"), (0,))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("precious", encoding="utf-8")
    report_of(tmp_path / "file", records)
    picture = next((tmp_path / "file" / "pictures").iterdir())
    picture.unlink()
    picture.symlink_to(outside / "victim")
    report_of(tmp_path / "file", records)
    assert not picture.is_symlink()
    assert picture.read_bytes() == b"drawn"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "pictures").symlink_to(outside)
    markdown, printed = report_of(tmp_path / "folder", records)
    assert "symbolic link" in printed
    assert "pictures/" not in markdown
    assert [(path.name, path.read_text(encoding="utf-8")) for path in outside.iterdir()] == [("victim", "precious")]


def test_a_full_disk_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_of(tmp_path, study(("lora", "glora"), (0, 1)))
    before = {name: (tmp_path / name).read_bytes() for name in ("report.md", "report.html")}
    write_record(tmp_path, finished_run(method="lora", seed=2))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(NotWrittenError, match="No space left.*unchanged"):
        write_report(tmp_path, console=Terminal(file=io.StringIO()))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
