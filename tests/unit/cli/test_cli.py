"""The command line: what it parses, prints and returns. Training is done by a stand-in."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glora
from glora import cli
from glora.cli.presets import PRESETS
from glora.experiments.config import SETTINGS, RunConfig
from glora.experiments.data.registry import TASKS
from glora.experiments.methods.registry import METHODS
from glora.experiments.models.model_fit import WRITTEN_ANSWERS_ONLY
from glora.experiments.models.registry import MODELS, ModelNotFoundError
from glora.experiments.records.store import read_records
from glora.experiments.report.write import NoFinishedRunsError
from glora.experiments.training import run as train
from unit.experiments.plan_case import BROKEN, FakeRuns, raising


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that were made, by a stand-in that fails for the method `adalora`."""
    runs = FakeRuns(raising(BROKEN, lambda config: config.method == "adalora"))
    monkeypatch.setattr(train, "run", runs)
    return runs.made


@pytest.fixture
def compare(call, tiny_options: tuple[str, ...], tmp_path: Path) -> Callable[..., Any]:
    """`glora compare` on a tiny model and task."""

    def run(*options: object, output: Path = tmp_path) -> Any:
        return call("compare", *tiny_options, "-o", output, *options)

    return run


# Start-up


def test_help_loads_nothing_heavy() -> None:
    """`glora --help` must come at once; on a quiet machine it takes 0.15 s, with torch it would take seconds."""
    program = (
        "import sys; sys.argv = ['glora', 'compare', '--help']\n"
        "from glora.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'sklearn', 'altair', 'vl_convert', 'optuna', 'numpy'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert "loaded: []" in done.stdout


def test_version(call) -> None:
    assert call("--version") == (0, f"glora {glora.__version__}\n", "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glora", "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == f"glora {glora.__version__}\n"


@pytest.mark.parametrize("command", ["compare", "search"])
def test_every_setting_of_a_run_has_an_option(call, command: str) -> None:
    shown = call(command, "--help").out
    named = {"learning_rate": "lr", "seed": "seeds", "method": "methods"}
    for field in SETTINGS.keys() - ({"held_out"} if command == "compare" else set()):
        assert f"--{named.get(field, field).replace('_', '-')} " in shown, field


def test_the_defaults_that_are_shown_are_those_that_are_used(call) -> None:
    shown = call("compare", "--help").out
    for option, field in (("--lr", "learning_rate"), ("--rank", "rank"), ("--beta", "beta"), ("--epochs", "epochs")):
        default = re.search(rf"{option} .*?\[default: (.*?)\]", shown, re.DOTALL)
        assert default, option
        assert float(default[1]) == SETTINGS[field].default


# Lists


@pytest.mark.parametrize(("what", "names"), [("methods", METHODS), ("models", MODELS), ("tasks", TASKS)])
def test_lists_show_every_name_with_what_it_is(call, what: str, names: dict[str, Any]) -> None:
    result = call("list", what)
    assert result.code == 0
    for name, entry in names.items():
        (line,) = [line for line in result.out.splitlines() if line.split()[:1] == [name]]
        assert entry.summary.split()[0] in line


# compare


def test_a_plan_is_shown_and_nothing_is_kept(compare, tmp_path: Path) -> None:
    result = compare("--seeds", "0,1", "--epochs", 4, "--plan", output=tmp_path / "out")
    assert result.code == 0
    assert not (tmp_path / "out").exists()
    for part in (
        "192 for training, 48 for validation",
        "4 epochs of 6 steps = 24 steps, 32 examples each",
        "warm-up 6 steps, beta 0.9, signal delta, rank budget",
        "6 = 3 methods (lora, glora:rule=spectrum, glora) × 2 seeds (0, 1)",
    ):
        assert part in result.out
    assert re.search(r"time +about .* of training at [\d.]+ s a step, timed now with lora;", result.out)


def test_a_plan_says_what_custom_data_were_taken_for(call, made, tiny_deberta: Path, tmp_path: Path) -> None:
    data, file = tmp_path / "train.csv", tmp_path / "e.json"
    (tmp_path / "dev.csv").write_text("text,label\na,0\n")
    file.write_text(json.dumps({"models_to_use": [str(tiny_deberta)], "datasets_to_use": [str(data)]}))
    comparison = ("compare", "--model", tiny_deberta, "--task", data, "--max-length", 8)
    for command in (comparison, ("run", file, "--set", "max_length=8")):
        data.write_text("text,label\n" + "a,0\nb,1\n" * 20 + "c,2\n")
        shown = call(*command, "-o", tmp_path / "out", "--plan")
        assert "classification, 3 classes: '0' (20), '1' (20), '2' (1); only once: '2' (line 42)" in " ".join(
            shown.out.split()
        )
        data.write_text("text,label\n" + "a,0\nb,1\n" * 20 + "c,nan\n")
        refused = call(*command, "-o", tmp_path / "out", "--plan")
        assert refused.code != 0
        assert re.search("line 42: .*'nan' .*number", " ".join(refused.err.split()))


def test_a_plan_of_one_of_each_is_in_the_singular(compare, made, tmp_path: Path) -> None:
    options = ("--methods", "glora", "--seeds", "0", "--epochs", 2, "--batch-size", 192, "--warmup-steps", 1)
    result = compare(*options, "--plan", output=tmp_path / "out")
    for part in ("2 epochs of 1 step = 2 steps", "warm-up 1 step, beta", "1 = 1 method (glora) × 1 seed (0)"):
        assert part in result.out


def test_options_reach_the_runs(compare, made, tmp_path: Path) -> None:
    options = (
        "--methods=lora,glora --seeds=4 --rank=4 --lora-alpha=12 --lora-dropout=0.1 --target-modules=query_proj,dense "
        "--lr=1e-3 --epochs=5 --batch-size=16 --group-by-length --max-length=32 --lr-scheduler=cosine --lr-warmup=0.1 "
        "--weight-decay=0.01 --trust-remote-code --save-adapters "
        "--train-limit=64 --eval-limit=32 --precision=bfloat16 --total-rank=20 --warmup-steps=0.5 --beta=0.8 "
        "--signal=delta_exact --budget=parameters --min-rank=1 --max-rank=9 --keep=svd --exact-every=4 "
        "--reallocate-every=4 --max-reallocations=2"
    )
    assert compare(*options.split()).code == 0
    lora, glora_run = made
    assert (lora.method, glora_run.method, glora_run.seed) == ("lora", "glora", 4)
    untouched = {"model", "task", "method", "seed", "data_dir", "report_to", "held_out"}  # the last is for searches
    untouched |= {"rule", "average_rank", "energy", "start_factor"}  # which go with other options
    for field, default in RunConfig().settings().items():
        if field in untouched:
            continue
        if field not in WRITTEN_ANSWERS_ONLY:  # which a classification refuses
            assert glora_run.setting(field) != default, f"{field} did not arrive"
    assert glora_run.target_modules == ("query_proj", "dense")
    assert lora.setting("beta") == SETTINGS["beta"].default
    for budget in ("average_rank", "energy"):
        options = ("--methods=glora", "--seeds=0", "--rule=spectrum", "--start-factor=3")
        options = (*options, f"--{budget.replace('_', '-')}=0.5")
        assert compare(*options, output=tmp_path / budget).code == 0
        assert [made[-1].setting(name) for name in ("rule", budget, "start_factor")] == ["spectrum", 0.5, 3]


def test_a_comparison_runs_reports_and_goes_on(compare, made, tmp_path: Path) -> None:
    first = compare("--methods", "lora,glora", "--seeds", "0")
    assert first.code == 0
    assert (tmp_path / "report.md").is_file()
    assert f"The report: {tmp_path / 'report.md'}" in first.out
    assert f"As a page: {tmp_path / 'report.html'}" in first.out
    assert (tmp_path / "report.html").is_file()
    assert len(made) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    again = compare("--methods", "lora,glora", "--seeds", "0")
    assert again.code == 0
    assert len(made) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == before
    assert "2 already finished" in again.out
    assert f"The report: {tmp_path / 'report.md'}" in again.out


def test_a_failed_run_is_told_and_the_others_are_reported(compare, made, tmp_path: Path) -> None:
    result = compare("--seeds", "0", "--methods", "lora,adalora,glora")
    assert result.code == 1
    assert [config.method for config in made] == ["lora", "adalora", "glora"]
    assert "adalora, seed 0 failed: OSError: broken on purpose" in result.out
    assert "1 of 3 runs did not" in result.out
    assert (tmp_path / "report.md").is_file()
    assert {record.status for record in read_records(tmp_path)} == {"finished", "failed"}


def test_when_every_run_fails_there_is_no_report_and_no_traceback(compare, made, tmp_path: Path) -> None:
    folder = tmp_path / "rte[/]"  # rich would read it as markup
    result = compare("--methods", "adalora", "--seeds", "0", output=folder)
    assert result.code == 1
    assert re.search(rf"1 of 1 runs .*{re.escape(str(folder / 'runs'))}\. The same", result.out)
    assert not (folder / "report.md").exists()
    assert result.err == ""


@pytest.mark.parametrize(
    ("number", "code", "expected"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_an_interrupt_frees_the_run_and_says_how_to_go_on(
    compare, made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, expected: str
) -> None:
    freed = []

    def accuracy(config: RunConfig) -> float:
        if config.method == "glora":
            try:
                signal.raise_signal(number)
            finally:
                freed.append(config.method)
        return 0.5

    monkeypatch.setattr(train, "run", FakeRuns(accuracy))
    result = compare("--methods", "lora,glora", "--seeds", "0")
    assert result.code == code
    assert re.search(f"{expected}. .*kept in {tmp_path}; .*same command", result.out)
    assert [record.config.method for record in read_records(tmp_path)] == ["lora"]
    assert freed == ["glora"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interrupt_of_any_command_is_no_traceback(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "glora.experiments.report.write.write_report", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    assert call("report", "x") == (143, "", "")


def test_an_ignored_sigterm_stays_ignored(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_IGN)
    monkeypatch.setattr("signal.signal", lambda *_: pytest.fail("handled"))
    assert call("list", "methods").code == 0


# Presets


def test_a_preset_is_a_start_and_what_is_given_wins(compare, made) -> None:
    result = compare("--preset", "demo", "--lr", "0.5", "--methods", "lora", "--seeds", 7)
    assert result.code == 0
    (config,) = made
    assert (config.method, config.seed, config.learning_rate) == ("lora", 7, 0.5)
    assert config.batch_size == PRESETS["demo"].settings["batch_size"] != RunConfig().batch_size


# Bad input


def test_errors_are_one_message_without_a_traceback(compare) -> None:
    result = compare("--methods", "lora,gloria", "--beta", 1)
    assert result.code == 2
    assert result.err.startswith("error: 2 things are wrong:")
    assert re.search("method 'gloria'; .*'glora'", result.err)
    assert "beta=1.0 must be in [0, 1)" in result.err
    assert "Traceback" not in result.err
    assert "--debug" not in result.err


def test_a_plan_tells_what_the_model_cannot_take(compare) -> None:
    result = compare("--max-length", 65, "--plan")
    assert result.code == 2
    assert re.search("max_length=65 .*64 tokens", result.err)
    result = compare("--model", "someone/some-model", "--plan")
    assert result.code == 2
    assert "cannot load the model 'someone/some-model'" in result.err


def test_runs_that_were_not_made_for_want_of_a_model_are_counted(compare, monkeypatch) -> None:
    def load_classifier(*_: object, **__: object) -> None:
        raise ModelNotFoundError("cannot load the model: the disk is full")

    monkeypatch.setattr("glora.experiments.training.classification.load_classifier", load_classifier)
    result = compare("--methods", "lora,glora", "--seeds", "0,1")
    assert result.code == 1
    assert re.search("lora, seed 0 failed: ModelNotFoundError: .*disk is full", result.out)
    assert re.search("3 runs .*same model: not made", result.out)
    assert "4 of 4 runs did not" in result.out


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["glora", "report", str(tmp_path), "--debug"])
    with pytest.raises(NoFinishedRunsError):
        cli.main()


def test_a_broken_record_is_named(compare, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "rte.json").write_text('{"schema_version": ')
    result = compare()
    assert result.code == 2
    assert "rte.json: malformed JSON at line 1" in result.err


def test_a_hint_keeps_its_brackets(call, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'datasets'")

    monkeypatch.setattr("glora.experiments.report.write.write_report", lacking)
    assert "pip install 'glora[experiments]'" in call("report", "x").err
