"""Stock PEFT, in a process without glora, loads the explicit SVD from a compressed adapter; and the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorWithPadding

from glora import compress_adapter
from glora.lora.discovery import find_matrices
from integration.adapters.test_saved_adapter import stock_logits
from integration.training.trainer_case import (
    TAKEN_OUT,
    base_model,
    encode,
    logits_of,
    peft_model,
    probe_batch,
    read_rte,
)


def filled(folder: Path, **fields: object) -> nn.Module:
    """An adapter as after training; one matrix has learned next to nothing."""
    model = peft_model(folder, r=8, **fields)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, matrix in find_matrices(model)[1].items():
            scale = 1e-4 if name == TAKEN_OUT else 0.2
            for factor in matrix.factors:
                factor.normal_(std=scale, generator=generator)
    return model


def truncated(model: nn.Module, folder: Path, ranks: dict[str, int]) -> nn.Module:
    """The base model with the truncated SVD of each PEFT's own Δ added to its weights."""
    merged = base_model(folder)
    with torch.no_grad():
        merged.load_state_dict(
            {
                key.removeprefix("base_model.model.")
                .replace("modules_to_save.default.", "")
                .replace("base_layer.", ""): v
                for key, v in model.state_dict().items()
                if "lora_" not in key and "original_module" not in key
            }
        )
        for name, matrix in find_matrices(model)[1].items():
            U, S, Vh = torch.linalg.svd(matrix.layer.get_delta_weight("default"), full_matrices=False)
            rank = ranks[name]
            merged.get_submodule(name).weight += U[:, :rank] * S[:rank] @ Vh[:rank]
    return merged


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {
            "rank_pattern": {"query_proj": 4},
            "alpha_pattern": {"query_proj": 16},
            "exclude_modules": ["layer.1.output.dense"],
        },
    ],
    ids=str,
)
def test_stock_peft_loads_it(tiny_deberta: Path, glue_folder: Path, tmp_path: Path, fields: dict) -> None:
    model = filled(tiny_deberta, **fields)
    model.save_pretrained(tmp_path / "adapter")
    made = compress_adapter(tmp_path / "adapter", parameters=0.4, output=tmp_path / "small")
    assert made.ranks[TAKEN_OUT] == 0
    assert len(set(made.ranks.values())) > 2
    batch = probe_batch(tiny_deberta, glue_folder)
    expected = logits_of(truncated(model, tiny_deberta, made.ranks), batch)
    assert (logits_of(model, batch) - expected).abs().max() > 1e-3, "the case must tell the cut from the whole"
    for logits in stock_logits(tiny_deberta, batch, tmp_path, tmp_path / "small"):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    before = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert (tmp_path / "small" / "adapter_model.safetensors").stat().st_size < 0.8 * before


# the command


@pytest.fixture
def adapter(tiny_deberta: Path, tmp_path: Path) -> Path:
    filled(tiny_deberta).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def compress(call) -> Callable[..., tuple[int, str]]:
    def run(*arguments: object) -> tuple[int, str]:
        done = call("compress", *arguments)
        return done.code, done.out + done.err

    return run


@pytest.mark.parametrize(
    "size",
    [
        ("--keep", "30%"),
        ("--keep", "0.3"),
        ("--keep", "1500"),
        ("--keep", "1_500.0"),
        ("--average-rank", "2"),
        ("--energy", "0.9"),
        ("--energy", "90%"),
    ],
    ids=str,
)
def test_the_command_writes_what_the_function_writes(
    compress, adapter: Path, tmp_path: Path, size: tuple[str, str]
) -> None:
    code, shown = compress(adapter, *size, "--output", tmp_path / "out")
    assert code == 0, shown
    keywords = {"--average-rank": "average_rank", "--energy": "energy"}
    value = {"30%": 0.3, "90%": 0.9, "1500": 1500, "1_500.0": 1500}.get(size[1], float(size[1].rstrip("%")))
    expected = compress_adapter(adapter, **{keywords.get(size[0], "parameters"): value}, output=tmp_path / "twin")
    assert str(expected).replace("twin", "out") in shown
    assert "key_proj" in shown
    assert "without an adapter" in shown
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("out", "twin"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_plan_writes_nothing(compress, adapter: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, shown = compress(adapter, "--plan", "--output", tmp_path / "out")
    assert code == 0, shown
    assert "12.5 %" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_row_of_the_plan_is_one_line_of_80_columns(compress, adapter: Path) -> None:
    _, shown = compress(adapter, "--plan", "--energy", "90%")
    lines = shown.rstrip().splitlines()
    assert [line for line in lines if line.endswith("<- asked")] != []
    assert max(map(len, lines)) <= 75  # the counts of large adapters take a few more


def test_a_task_is_evaluated_before_and_after(
    compress, adapter: Path, tiny_deberta: Path, glue_folder: Path, tmp_path: Path
) -> None:
    """The base model is the one that the adapter names."""
    rows = read_rte(glue_folder, "dev")
    tokenizer = AutoTokenizer.from_pretrained(tiny_deberta)
    batch = DataCollatorWithPadding(tokenizer)(encode(rows, tokenizer))
    labels = batch.pop("labels")
    right = logits_of(PeftModel.from_pretrained(base_model(tiny_deberta), str(adapter)), batch).argmax(1) == 1 - labels
    accuracy = f"{100 * right.float().mean():.2f}"
    task = ("--task", "rte", "--data-dir", glue_folder, "--max-length", "64")
    code, shown = compress(adapter, "--energy", "0.2", "--output", tmp_path / "out", *task)
    assert code == 0, shown
    assert re.search(rf"before: Accuracy {accuracy} % .*48 .*validation split .*2\.08", shown)
    assert re.search(r"after: Accuracy \d+\.\d\d % \((the same|\d+\.\d\d points)", shown)

    code, shown = compress(adapter, "--tolerance", "100", "--output", tmp_path / "smallest", *task)
    assert code == 0, shown
    assert "at most 100 points" in shown
    assert "of the parameters: Accuracy" in shown
    ranks = json.loads((tmp_path / "smallest" / "adapter_config.json").read_text())
    assert ranks["r"] == 1


def test_an_adapter_of_another_task_is_one_message(compress, adapter: Path, glue_folder: Path, tmp_path: Path) -> None:
    task = ("--task", "mnli", "--data-dir", glue_folder, "--max-length", "64")
    code, shown = compress(adapter, "--keep", "50%", "--output", tmp_path / "out", *task)
    assert code == 2
    assert "not fit the model" in shown
    assert "task mnli: size mismatch" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_written_answers_are_evaluated_too(compress, tiny_writer: Path, sums_folder: Path, tmp_path: Path) -> None:
    """By a causal model; with a uniform cut, and the picture of the curve."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_writer)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    options = ("--task", "gsm8k", "--data-dir", sums_folder, "--max-length", "48", "--eval-limit", "8")
    picture = tmp_path / "curve.png"
    arguments = ("--average-rank", "2", "--uniform", "--output", tmp_path / "out", "--picture", picture)
    code, shown = compress(tmp_path / "adapter", *arguments, *options)
    assert code == 0, shown
    assert re.search(r"before: Exact match \d+\.\d\d % .*8 .*test split", shown)
    assert re.search(r"after: Exact match \d+\.\d\d % \(", shown)
    assert {
        len(t) for key, t in load_file(tmp_path / "out" / "adapter_model.safetensors").items() if "lora_A" in key
    } == {2}
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of --keep, --average-rank, --energy, --tolerance"),
        (["--keep", "25%", "--energy", "0.9", "--output", "out"], "exactly one of"),
        (["--keep", "25%"], "give --output"),
        (["--keep", "much", "--output", "out"], "--keep much: write a share such as 25%"),
        (["--keep", "250%", "--output", "out"], "--keep 250% must be a share"),
        (["--keep", "25", "--output", "out"], "--keep 25: write 25% or 0.25 for a share"),
        (["--keep", "0", "--output", "out"], "--keep 0 must be a share"),
        (["--keep", "0.01%", "--output", "out"], "--keep 0.01% pays for no direction"),
        (["--average-rank", "0", "--output", "out"], "--average-rank 0.0 must be a number above 0"),
        (
            ["--average-rank", "99", "--output", "out"],
            "--average-rank 99.0 is not below the adapter's own: it has the parameters of rank 8 ",
        ),
        (["--energy", "2", "--plan"], "--energy 2.0 must be above 0"),
        (["--energy", "most", "--plan"], "write a share such as 95% or 0.95, not 'most'"),
        (
            ["--keep", "50%", "--max-rank", "0", "--output", "out"],
            "--min-rank 0 and --max-rank 0: ints, the first at least 0",
        ),
        (
            ["--keep", "5%", "--min-rank", "4", "--output", "out"],
            "DoRA, lora_bias and experts); lower --min-rank, or ask for a larger --average-rank",
        ),
        (["--tolerance", "0.5", "--output", "out"], "--tolerance needs --task"),
        (["--tolerance", "nan", "--task", "rte", "--output", "out"], "--tolerance nan must be a number of points"),
        (["--tolerance", "-1", "--task", "rte", "--output", "out"], "--tolerance -1 must be a number of points"),
        (["--plan", "--task", "rte"], "--task: --plan evaluates nothing"),
        (["--keep", "50%", "--data-dir", "glue", "--output", "out"], "--data-dir needs --task"),
        (["--keep", "25%", "--output", "out", "--task", "rtee"], "rtee"),
        (["--keep", "25%", "--output", "adapter"], "is the adapter itself"),
    ],
    ids=str,
)
def test_errors_are_one_message_and_nothing_is_written(
    compress, adapter: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(adapter.parent)
    code, shown = compress("adapter", *arguments)
    assert code == 2
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert not Path("out").exists()
