"""One small fine-tuning job as a user writes it: Trainer, PEFT, a DeBERTa-v2 and files in GLUE's layout."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from glora import RankAllocationCallback

TARGETS = ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"]
TAKEN_OUT = "deberta.encoder.layer.0.attention.self.key_proj"


def read_rte(folder: Path, split: str) -> list[tuple[str, str, int]]:
    with (folder / "RTE" / f"{split}.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence1"], row["sentence2"], int(row["label"] == "entailment")) for row in rows]


def encode(rows: list[tuple[str, str, int]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    return [{**tokenizer(a, b, truncation=True, max_length=64), "labels": label} for a, b, label in rows]


def base_model(folder: Path, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **fields)


def lora_config(**fields: Any) -> LoraConfig:
    return LoraConfig(**dict(r=4, lora_alpha=8, target_modules=TARGETS, task_type="SEQ_CLS") | fields)


def peft_model(folder: Path, **fields: Any) -> nn.Module:
    model = base_model(folder)
    torch.manual_seed(1)
    return get_peft_model(model, lora_config(**fields))


def make_trainer(
    model: nn.Module,
    folder: Path,
    data: Path,
    output: Path,
    callbacks: list[Any],
    *,
    examples: tuple[int | None, int | None] = (None, None),
    optimizers: tuple[Any, Any] = (None, None),
    trainer_class: type[Trainer] = Trainer,
    **arguments: Any,
) -> Trainer:
    """A Trainer on the first `examples` of the training and the dev set; an epoch of all is 12 steps."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = dict(
        output_dir=str(output),
        learning_rate=5e-3,
        per_device_train_batch_size=16,
        num_train_epochs=2,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=4,
        seed=0,
        use_cpu=True,
    )
    return trainer_class(
        model=model,
        args=TrainingArguments(**settings | arguments),
        train_dataset=encode(read_rte(data, "train")[: examples[0]], tokenizer),
        eval_dataset=encode(read_rte(data, "dev")[: examples[1]], tokenizer),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=callbacks,
        optimizers=optimizers,
    )


def callback_of(trainer: Trainer) -> RankAllocationCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, RankAllocationCallback))


def probe_batch(folder: Path, data: Path) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = DataCollatorWithPadding(tokenizer)(encode(read_rte(data, "dev")[:8], tokenizer))
    return {k: v for k, v in batch.items() if k != "labels"}


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**batch).logits
