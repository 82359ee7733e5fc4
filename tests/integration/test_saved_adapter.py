"""What is saved is a plain PEFT LoRA adapter: a process that cannot import glora loads it and computes the same."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from safetensors.torch import load_file

from glora import RankAllocationCallback, RankAllocationConfig, export_uniform
from glora.export import export_saved_adapter
from integration.trainer_case import base_model, lora_config, make_trainer, peft_model, probe_batch

STOCK = textwrap.dedent(
    """
    import sys, torch
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "glora":
                raise ImportError("glora must not be needed")
    sys.meta_path.insert(0, Refuse())
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification
    base, adapter, probe, result = sys.argv[1:]
    torch.manual_seed(0)
    batch = torch.load(probe)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        logits = model(**batch).logits
        merged = model.merge_and_unload()(**batch).logits
    assert "glora" not in sys.modules
    torch.save((logits, merged), result)
    """
)


def stock_logits(base: Path, adapter: Path, batch: dict[str, torch.Tensor], folder: Path) -> list[torch.Tensor]:
    torch.save(batch, folder / "probe.pt")
    command = [sys.executable, "-W", "error::UserWarning:peft", "-c", STOCK]
    arguments = [str(base), str(adapter), str(folder / "probe.pt"), str(folder / "logits.pt")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "missing adapter keys" not in done.stderr
    assert "unexpected" not in done.stderr
    return torch.load(folder / "logits.pt")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear"},
        {"exclude_modules": ["layer.1.output.dense"]},
        {"exclude_modules": r".*layer\.1\.output\.dense"},
        {"rank_pattern": {"query_proj": 2}, "alpha_pattern": {"query_proj": 2}},
    ],
    ids=str,
)
def test_stock_peft_loads_it(tiny_deberta: Path, glue_folder: Path, tmp_path: Path, fields: dict) -> None:
    without = "deberta.encoder.layer.0.attention.self.key_proj"
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=6, max_rank={without: 0}))
    model = peft_model(tiny_deberta, **fields)
    make_trainer(model, tiny_deberta, glue_folder, tmp_path, [callback], max_steps=10).train()
    ranks = callback.allocator.ranks
    assert ranks[without] == 0
    assert len(set(ranks.values())) > 3

    batch = probe_batch(tiny_deberta, glue_folder)
    model.eval()
    with torch.no_grad():
        live = model(**batch).logits
    model.save_pretrained(tmp_path / "adapter")
    loaded, merged = stock_logits(tiny_deberta, tmp_path / "adapter", batch, tmp_path)
    assert torch.equal(loaded, live)
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-5)

    export_uniform(model, tmp_path / "uniform")
    export_saved_adapter(tmp_path / "adapter", tmp_path / "padded")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("uniform", "padded"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one), "from the model and from the files, the same"
    assert {len(t) for key, t in one.items() if "lora_A" in key} == {max(ranks.values())}
    loaded, merged = stock_logits(tiny_deberta, tmp_path / "uniform", batch, tmp_path)
    torch.testing.assert_close(loaded, live, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-5)


def test_one_scaling_everywhere_for_servers_that_read_no_patterns(
    tiny_deberta: Path, glue_folder: Path, tmp_path: Path
) -> None:
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=2))
    model = peft_model(tiny_deberta)
    make_trainer(model, tiny_deberta, glue_folder, tmp_path, [callback], max_steps=3).train()
    config = model.peft_config["default"]
    layers = [m for m in model.modules() if hasattr(m, "lora_A") and "default" in m.lora_A]
    assert {m.scaling["default"] for m in layers} == {config.lora_alpha / config.r} == {2.0}
    for pattern, rank in config.rank_pattern.items():
        assert config.alpha_pattern[pattern] == 2 * rank
        assert pattern.startswith("^deberta\\.encoder\\.layer\\.")


def test_add_adapter_saves_and_loads(tiny_deberta: Path, glue_folder: Path, tmp_path: Path) -> None:
    model = base_model(tiny_deberta)
    model.add_adapter(lora_config(task_type=None))
    callback = RankAllocationCallback(RankAllocationConfig(warmup_steps=2))
    make_trainer(model, tiny_deberta, glue_folder, tmp_path, [callback], max_steps=3).train()
    batch = probe_batch(tiny_deberta, glue_folder)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = base_model(tiny_deberta)
    again.load_adapter(str(tmp_path / "adapter"))
    again.eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_what_cannot_be_padded_is_refused(tmp_path: Path) -> None:
    LoHaConfig(target_modules=["q"]).save_pretrained(str(tmp_path / "loha"))
    with pytest.raises(ValueError, match="is of type LOHA; only a LoRA adapter can be padded"):
        export_saved_adapter(tmp_path / "loha", tmp_path / "out")
    LoraConfig(target_parameters=["experts.gate_up_proj"]).save_pretrained(str(tmp_path / "experts"))
    with pytest.raises(ValueError, match=r"adapts expert parameters \(experts.gate_up_proj\)"):
        export_saved_adapter(tmp_path / "experts", tmp_path / "out")
    with pytest.raises(ValueError, match="is the adapter itself; give another folder"):
        export_saved_adapter(tmp_path / "loha", tmp_path / "loha")
