"""Each example runs by itself, says what its first lines promise, and leaves nothing behind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from new_process import run_script

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example in an empty folder, with an empty folder for temporary files; both must be empty again afterwards."""
    here, temporary = folder / "here", folder / "temporary"
    here.mkdir()
    temporary.mkdir()
    folders = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(folder / "torch")}
    done = run_script(EXAMPLES / f"{name}.py", *arguments, folder=here, **folders)
    assert done.returncode == 0, done.stderr
    assert list(here.iterdir()) == list(temporary.iterdir()) == []
    return done


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in\n{text}"
    return [float(group.replace(",", "")) for group in found.groups()]


def reallocations(stderr: str) -> int:
    return len(re.findall(r"^glora: step \d+: kept .* of the learned update's energy", stderr, re.MULTILINE))


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'run\("(\w+)"', Path(__file__).read_text(encoding="utf-8")))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.encoder
def test_trainer(embedded_encoder: Path, tmp_path: Path) -> None:
    done = run("trainer", tmp_path, str(tmp_path / "output"))
    (accuracy,) = numbers(r"accuracy on new words: ([\d.]+)", done.stdout)
    assert accuracy > 0.8
    matrices, total = numbers(r"(\d+) matrices, (\d+) ranks in all", done.stdout)
    assert matrices == 36
    assert 0.9 < total / (36 * 8) < 1.1  # parameters are held, not ranks
    ranks = [int(line.split()[0]) for line in done.stdout.splitlines() if line.endswith((".dense", ".query", ".key"))]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] > 8 > ranks[-1]
    assert reallocations(done.stderr) == 1
    assert (tmp_path / "output" / "adapter_config.json").is_file()


@pytest.mark.encoder
def test_get_started(embedded_encoder: Path, tmp_path: Path) -> None:
    """The page's script, as it is, gives the line that the page and README show, but for the last digits."""
    page = (EXAMPLES.parent / "docs" / "get-started.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = run_script(tmp_path / "script.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    line = r"glora: step 5: kept (\d+)\.\d% .* in 36 matrices; adapter parameters 1,327,104 -> ([\d,]+) \(-75.0%\)"
    found = numbers(line, done.stderr)
    for text in (page, (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")):
        assert numbers(line, text) == pytest.approx(found, rel=0.05)
    assert {"adapter_config.json", "allocation.json"} <= {path.name for path in (tmp_path / "adapter").iterdir()}


def test_training_loop(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    done = run("training_loop", tmp_path)
    (before,), (after,) = (
        numbers(rf"{when}: accuracy on negatives ([\d.]+)", done.stdout) for when in ("before", "after")
    )
    assert before < 0.2
    assert after > 0.6
    (parameters,) = numbers(r"step 400: .*, ([\d,]+) parameters", done.stdout)
    assert parameters <= 4 * (64 + 256 + 256 + 128 + 128 + 10) < 1.05 * parameters
    assert reallocations(done.stderr) == 1


def test_trl_sft(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    done = run("trl_sft", tmp_path)
    first, last = numbers(r"loss of the answers: ([\d.]+) at first, ([\d.]+) at last", done.stdout)
    assert last < first - 0.1
    ranks = [int(rank) for rank in re.findall(r"^ *(\d+)  model\.layers", done.stdout, re.MULTILINE)]
    assert 0.9 < sum(ranks) / (14 * 8) < 1.1  # parameters are held, not ranks
    assert len(set(ranks)) > 2
    assert reallocations(done.stderr) == 1


@pytest.mark.encoder
def test_embedding_model(embedded_encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    done = run("embedding_model", tmp_path, str(tmp_path / "output"))
    before, after = numbers(r"loss of the pairs: ([\d.]+) before, ([\d.]+) after", done.stdout)
    assert after < before / 2
    (difference,) = numbers(r"the largest difference: ([\d.e+-]+)", done.stdout)
    assert difference < 1e-5
    assert "matrices without an adapter: pooler" not in done.stderr
    assert (tmp_path / "output" / "adapter_config.json").is_file()


def test_grpo(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    done = run("grpo", tmp_path)
    first, last = numbers(r"reward: ([\d.]+) at first, ([\d.]+) at last", done.stdout)
    assert last > max(0.95, first + 0.05)
    assert "of the learned update's energy" in done.stderr


def test_accelerate_loop(tmp_path: Path) -> None:
    done = run("accelerate_loop", tmp_path)
    smallest, largest = numbers(r"uninterrupted: loss [\d.]+, ranks (\d+) to (\d+)", done.stdout)
    assert smallest < 2 < largest < 8
    assert "the same: True" in done.stdout
    assert reallocations(done.stderr) == 1, "the resumed run begins after the reallocation"


def test_suggest_ranks(tmp_path: Path) -> None:
    done = run("suggest_ranks", tmp_path)
    assert "as it was: True" in done.stdout
    ranks = [int(rank) for rank in re.findall(r"^ *(\d+)  \^model", done.stdout, re.MULTILINE)]
    assert len(ranks) == 21
    assert min(ranks) >= 1
    assert len(set(ranks)) > 2
    allocated, uniform = numbers(r"parameters: ([\d,]+), uniform ([\d,]+)", done.stdout)
    assert 0.98 * uniform < allocated <= uniform


def test_serve_uniform(tmp_path: Path) -> None:
    done = run("serve_uniform", tmp_path, str(tmp_path / "output"))
    (trained,) = numbers(r"trained against base model: ([\d.e-]+)", done.stdout)
    assert trained > 0.1
    for form in ("adapter", "uniform"):
        differences = numbers(rf"{form}: largest difference ([\d.e-]+), merged ([\d.e-]+)", done.stdout)
        assert max(differences) < 1e-5
        assert (tmp_path / "output" / form / "adapter_model.safetensors").is_file()
    (differing,), (padded,) = (
        numbers(rf"{form}: r=.*, (\d+) entries in rank_pattern", done.stdout) for form in ("adapter", "uniform")
    )
    assert differing > 0
    assert padded == 0


def test_resume(tmp_path: Path) -> None:
    done = run("resume", tmp_path, str(tmp_path / "output"))
    assert "same weights, to the last bit: True" in done.stdout
    (largest,) = numbers(r"largest rank (\d+), before the reallocation 8", done.stdout)
    assert 2 < largest < 8
    assert reallocations(done.stderr) == 2, "once in each run that came to it, not again after resuming"
    assert (tmp_path / "output" / "cut-off" / "checkpoint-12").is_dir()
