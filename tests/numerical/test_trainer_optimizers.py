"""Every optimizer that Trainer offers: its state is carried across the reallocation, or it is refused at the first step."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from glora import RankAllocationCallback, RankAllocationConfig, RankAllocator
from glora.lora.optimizer_state import BITSANDBYTES_BLOCK, MEAN_OVER, _known_name, _per_element, _plain_state
from integration.adapters.training_cases import OPTIMIZERS

WARMUP, STEPS, RANK = 3, 5, 4
# What a new column begins with, where it is not the mean of the kept columns'; written out as in test_optimizer_state.py.
AT_ZERO = {"exp_avg", "momentum_buffer", "kahan_comp"}
AT_THE_COLUMN = {"z"}
CASES = {name: case for case in OPTIMIZERS for name in case.names}


class Net(nn.Module):
    """Wide enough that the factor A of `wide` has an eight-bit state where an optimizer keeps those."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(1024, 12)
        self.narrow = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(torch.tanh(self.narrow(torch.tanh(self.wide(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Timed(RankAllocator):
    """Compares what the optimizer keeps before and after the reallocation."""

    compared = 0

    def _reallocate(self) -> None:
        before = {name: [self.state_of(p) for p in self.pair(name)] for name in self.ranks}
        super()._reallocate()
        for name, rank in self.ranks.items():
            for dim, (old, parameter) in enumerate(zip(before[name], self.pair(name))):
                new, kept = self.state_of(parameter), min(rank, RANK)
                assert old.keys() == new.keys()
                for key in old:
                    if not _per_element(old[key]):
                        assert old[key] == new[key]
                        continue
                    assert new[key].dtype == torch.float32
                    over_ranks = key in MEAN_OVER and MEAN_OVER[key] % 2 == dim
                    place = -1 if key in MEAN_OVER else dim - 2
                    count = old[key].shape[place] if over_ranks else kept
                    one, other = (t.narrow(place, 0, count) for t in (old[key], new[key]))
                    assert torch.equal(one, other), (name, key)
                    Timed.compared += 1
                    if over_ranks or rank <= kept:
                        continue
                    added = new[key].narrow(place, kept, rank - kept)
                    known = _known_name(self._optimizer, key)
                    if known in AT_ZERO:
                        assert not added.any(), (name, key)
                    elif known in AT_THE_COLUMN:
                        assert torch.equal(added, parameter.narrow(dim, kept, rank - kept)), (name, key)
                    else:
                        torch.testing.assert_close(added, one.mean(place, keepdim=True).expand_as(added))

    def pair(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        return self.adapter.matrices[name].factors

    def state_of(self, parameter: nn.Parameter) -> dict:
        return _plain_state(self._optimizer.state.get(parameter, {}))


class Callback(RankAllocationCallback):
    allocator_class = Timed


def trainer_with(optim: str, output: Path, callback: RankAllocationCallback, **fields: object) -> Trainer:
    torch.manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=["wide", "narrow"], modules_to_save=["head"])
    model = get_peft_model(Net(), config)
    low_rank = optim.startswith(("galore", "apollo"))
    arguments = TrainingArguments(
        output_dir=str(output),
        optim=optim,
        optim_target_modules=["lora_A", "lora_B"] if low_rank else None,
        optim_args="rank=2" if low_rank else None,
        learning_rate=1e-3,
        max_steps=STEPS,
        warmup_steps=1,
        per_device_train_batch_size=4,
        max_grad_norm=0.0 if optim in ("lomo", "adalomo") else 1.0,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "no"} | fields,
    )
    data = [{"x": torch.randn(1024), "labels": torch.tensor(i % 3)} for i in range(4 * STEPS)]
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])


def test_every_name_has_one_line_in_the_table() -> None:
    in_the_table = [name for case in OPTIMIZERS for name in case.names]
    assert sorted(in_the_table) == sorted(name.value for name in OptimizerNames)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra `optimizers` is not installed")
@pytest.mark.parametrize("optim", CASES)
@pytest.mark.filterwarnings("ignore")  # of other packages, about themselves
def test_carried_or_refused_at_once(optim: str, tmp_path: Path) -> None:
    case = CASES[optim]
    callback = Callback(
        RankAllocationConfig(warmup_steps=WARMUP, keep="first", min_rank={"narrow": 2}, max_rank={"narrow": 2})
    )
    trainer = trainer_with(optim, tmp_path, callback)
    Timed.compared = 0
    with torch.compiler.set_stance("force_eager"):  # torchao would compile its steps, for longer than they take
        if case.error:
            with pytest.raises((ValueError, ImportError, AssertionError), match=case.error):
                trainer.train()
            assert trainer.state.global_step == 0
            return
        trainer.train()
    assert callback.allocator.ranks == {"wide": 6, "narrow": 2}
    assert Timed.compared or optim == "sgd", "SGD without momentum keeps nothing"
    for parameter in trainer.model.parameters():
        assert torch.isfinite(parameter).all()
    grown = trainer.model.base_model.model.wide.lora_B.default.weight[:, RANK:]
    assert grown.abs().max() > 0, "new columns learn"


# One of each family: states in eight bits, which float32 ones follow after the reallocation, means over rows and columns, a
# second sequence of weights.
RESUMED = ("adafactor", "adamw_torch_8bit", "adamw_bnb_8bit", "ademamix_8bit", "schedule_free_adamw", "stable_adamw")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="the extra `optimizers` is not installed")
@pytest.mark.parametrize("optim", RESUMED)
@pytest.mark.filterwarnings("ignore")
def test_resumed_after_the_reallocation_with_the_same_bits(optim: str, tmp_path: Path) -> None:
    def trainer(folder: str) -> Trainer:
        callback = RankAllocationCallback(dict(warmup_steps=WARMUP, min_rank={"narrow": 2}, max_rank={"narrow": 2}))
        return trainer_with(optim, tmp_path / folder, callback, save_strategy="steps", save_steps=1)

    with torch.compiler.set_stance("force_eager"):
        whole, again = trainer("whole"), trainer("again")
        whole.train()
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{WARMUP + 1}"))
    assert again.model.base_model.model.wide.r == {"default": 6}
    for (name, parameter), (_, other) in zip(whole.model.named_parameters(), again.model.named_parameters()):
        assert torch.equal(parameter, other), name


def test_eight_bit_states_are_read_as_bitsandbytes_reads_them() -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    value = torch.randn(4, 1100)
    codes, state = functional.quantize_blockwise(value, blocksize=BITSANDBYTES_BLOCK)
    read = _plain_state({"state1": codes, "qmap1": state.code, "absmax1": state.absmax})["state1"]
    assert torch.equal(read, functional.dequantize_blockwise(codes, state))
    torch.testing.assert_close(read, value, atol=0.05, rtol=0.1)
