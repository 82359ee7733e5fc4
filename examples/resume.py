"""Resuming: a training that is cut off after the reallocation goes on from its checkpoint and gives the same weights.

The checkpoint holds the ranks. A new model starts with equal ranks, and takes on those of the checkpoint when it is loaded.

    python examples/resume.py [FOLDER]      where the checkpoints are kept (default: a temporary folder)
"""

import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from glora import RankAllocationCallback, last_complete_checkpoint


class CutOff(TrainerCallback):
    """Stop the training, as a power failure would."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 15


def dataset():
    tokens = torch.randint(2, 100, (64, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0] > row[-1])} for row in tokens]


def make_trainer(folder, *callbacks):
    set_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    base = BertForSequenceClassification(BertConfig(vocab_size=100, **size))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"], task_type="SEQ_CLS")
    arguments = TrainingArguments(
        output_dir=str(folder),
        learning_rate=5e-3,
        per_device_train_batch_size=8,
        num_train_epochs=3,
        save_steps=4,
        report_to="none",
        disable_tqdm=True,
    )
    allocation = RankAllocationCallback(rule="spectrum", average_rank=2, warmup_steps=6)
    return Trainer(
        model=get_peft_model(base, lora),
        args=arguments,
        train_dataset=dataset(),
        callbacks=[allocation, *callbacks],
    )


def main(folder):
    whole = make_trainer(folder / "whole")
    whole.train()

    make_trainer(folder / "cut-off", CutOff()).train()
    resumed = make_trainer(folder / "cut-off")
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(folder / "cut-off"))

    ours, theirs = whole.model.state_dict(), resumed.model.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    print(f"cut off at step 15, resumed, trained to step {resumed.state.global_step}")
    print(f"largest rank {resumed.model.peft_config['default'].r}, before the reallocation 8")
    print(f"the same weights, to the last bit: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
