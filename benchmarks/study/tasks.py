"""The tasks: what is trained on, what chooses epoch and learning rate, and what is held out of both.

`Measured.losses` has one loss for each held-out example, so that two runs can be compared example by example.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModel, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from glora.experiments.config import RunConfig
from glora.experiments.data.loading import build_task_data, load_hub_dataset
from glora.experiments.data.registry import resolve_task
from glora.experiments.data.stdlib_docs import StdlibDocs, build_splits
from glora.experiments.data.task import TaskData, limited
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.tokenization import TokenizedTask
from glora.experiments.training.classification import Classification
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import TimedTrainer
from glora.experiments.training.training_arguments import training_arguments

SELECTION, HELD_OUT = "selection", "held_out"


@dataclass(frozen=True)
class Measured:
    """A split's examples, measured.

    Attributes:
        losses: The loss of each example, summed over its tokens where an answer is written.
        weights: The number of tokens each loss is a sum of; 1 where there is one label.
        scores: 1 for a right answer, 0 for a wrong one; in retrieval the reciprocal rank.
    """

    losses: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor | None = None

    @property
    def loss(self) -> float:
        return float(self.losses.sum() / self.weights.sum())

    @property
    def score(self) -> float | None:
        return None if self.scores is None else float(self.scores.mean())


@dataclass(frozen=True)
class StudyTask:
    """A task of the study.

    Attributes:
        settings: The settings of its runs.
        kind: How a model for it is loaded and trained.
        read: Reads it: (folder of the data files, SST-2's or GSM8K's) -> splits `selection` and `held_out` beside `train`.
        measure: Measures the held-out examples.
    """

    settings: dict[str, Any]
    kind: Any
    read: Callable[[Path], TaskData]
    measure: Callable[[nn.Module, Dataset, Callable[[list[Any]], Any]], Measured]


def _sst2(data: Path) -> TaskData:
    """6,000 of the training file's texts, 10,000 others of it held out; GLUE's own dev split selects."""
    task, read = resolve_task("sst2", str(data / "glue")).read(load_hub_dataset, only_train=False)
    train = limited(read["train"], 6000)
    seen = set(train.columns["text_a"])
    rest = [place for place, text in enumerate(read["train"].columns["text_a"]) if text not in seen]
    return _task_data(
        task, train, next(v for k, v in read.items() if k != "train"), limited(read["train"].at(rest), 10_000)
    )


def _stdlib_docs(_data: Path) -> TaskData:
    """6,000 pairs; the modules of `validation` select, those of `test` are held out."""
    splits = build_splits(Path(sysconfig.get_path("stdlib")))
    return _task_data(StdlibDocs.task, limited(splits["train"], 6000), splits["validation"], splits["test"])


def _retrieval(_data: Path) -> TaskData:
    """Each function's signature with its own docstring; the splits are those of stdlib-docs."""
    splits = {
        name: rows.at([i for i, label in enumerate(rows.columns["label"]) if label])
        for name, rows in build_splits(Path(sysconfig.get_path("stdlib"))).items()
    }
    return _task_data(StdlibDocs.task, splits["train"], splits["validation"], splits["test"])


def _gsm8k(data: Path) -> TaskData:
    """640 training problems and 100 others that select; 500 of the test problems held out."""
    task, read = resolve_task("gsm8k", str(data / "gsm8k")).read(load_hub_dataset, only_train=False)
    task = task.judged_by_loss()  # nothing is written: the loss decides
    drawn = limited(read["train"], 740)
    test = next(v for k, v in read.items() if k != "train")
    return _task_data(task, drawn.at(range(640)), drawn.at(range(640, 740)), limited(test, 500))


def _task_data(task: Any, train: Any, selection: Any, held_out: Any) -> TaskData:
    """Held-out examples are in the order of their length, so that batches of them have little padding."""
    if (texts := held_out.columns).get("text_a"):
        lengths = [len(a) + len(b) for a, b in zip(texts["text_a"], texts.get("text_b") or texts["text_a"])]
        held_out = held_out.at(sorted(range(len(held_out)), key=lengths.__getitem__))
    return build_task_data(task, train, {SELECTION: selection, HELD_OUT: held_out})


# Labels


@torch.no_grad()
def measure_labels(model: nn.Module, rows: Dataset, collate: Callable[[list[Any]], Any]) -> Measured:
    """Cross-entropy of each example's label, and whether it is the likeliest."""
    logits, labels = [], []
    for batch in batches(rows, collate, 32, _device(model)):
        labels.append(batch.pop("labels").cpu())
        logits.append(model(**batch).logits.float().cpu())
    found, wanted = torch.cat(logits), torch.cat(labels)
    losses = nn.functional.cross_entropy(found, wanted, reduction="none")
    return Measured(losses, torch.ones_like(losses), (found.argmax(1) == wanted).float())


def batches(
    rows: Dataset, collate: Callable[[list[Any]], Any], size: int, device: torch.device | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """The rows in their order."""
    for start in range(0, len(rows), size):
        batch = collate([rows[i] for i in range(start, min(start + size, len(rows)))])
        yield {name: tensor.to(device) for name, tensor in batch.items()}


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


# Answers


@torch.no_grad()
def measure_answers(model: nn.Module, rows: Dataset, collate: Callable[[list[Any]], Any]) -> Measured:
    """−Σ log p of each answer's tokens."""
    losses, counts = [], []
    for batch in batches(rows, collate, 4, _device(model)):
        labels = batch.pop("labels")[:, 1:]
        log_probabilities = model(**batch).logits[:, :-1].float().transpose(1, 2)
        losses.append(nn.functional.cross_entropy(log_probabilities, labels, reduction="none").sum(1).cpu())
        counts.append((labels != -100).sum(1).float().cpu())
    return Measured(torch.cat(losses), torch.cat(counts))


# Retrieval

TEMPERATURE = 0.05


class Retrieval(Classification):
    """Find a function's docstring by its signature: one encoder for both, mean pooling, cosine similarity."""

    adapter_task_type = "FEATURE_EXTRACTION"

    def load_model(self, config: RunConfig, task: TaskData) -> Any:
        """Return the encoder without a pooler, and its tokenizer."""
        classifier, tokenizer = load_classifier(config.model, num_labels=2, seed=config.seed)
        encoder = AutoModel.from_config(classifier.config, add_pooling_layer=False)
        encoder.load_state_dict(classifier.base_model.state_dict(), strict=False)
        return encoder, tokenizer

    def tokenize(self, config: RunConfig, task: TaskData, model: PreTrainedModel, tokenizer: Any) -> TokenizedTask:
        """Columns `a` and `b`: the token ids of signatures and docstrings."""

        def encode(split: Dataset) -> Dataset:
            texts = {"a": list(split["text_a"]), "b": list(split["text_b"])}
            return Dataset.from_dict(
                {k: tokenizer(v, truncation=True, max_length=config.max_length)["input_ids"] for k, v in texts.items()}
            )

        return TokenizedTask(encode(task.train), {name: encode(split) for name, split in task.evaluation.items()})

    def collator(self, tokenizer: Any) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Return what stacks a batch's signatures above its docstrings."""
        return lambda rows: dict(
            tokenizer.pad({"input_ids": [row[k] for k in "ab" for row in rows]}, return_tensors="pt")
        )

    def target_modules(self, model: PreTrainedModel, wanted: Any) -> list[str]:
        """Every linear layer."""
        return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]

    def head_modules(self, model: PreTrainedModel) -> list[str]:
        """None."""
        return []

    def trainer(
        self, config: RunConfig, adapted: Any, tokens: Any, tokenizer: Any, task: Any, recorder: Any, folder: Path
    ) -> Any:
        """Return a Trainer of the contrastive loss."""
        return ContrastiveTrainer(
            model=adapted.model,
            args=training_arguments(config, folder, TrainingArguments, remove_unused_columns=False),
            train_dataset=tokens.train,
            eval_dataset=tokens.evaluation,
            data_collator=self.collator(tokenizer),
            callbacks=list(adapted.callbacks),
            recorder=recorder,
        )


class ContrastiveTrainer(TimedTrainer):
    """Trains by the docstrings of a batch: each signature's own against those of the others, and the other way round."""

    not_metrics = TimedTrainer.not_metrics - {"loss"}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean cross-entropy of both directions."""
        a, b = embed(model, inputs).chunk(2)
        similar, own = a @ b.T / TEMPERATURE, torch.arange(len(a))
        return (nn.functional.cross_entropy(similar, own) + nn.functional.cross_entropy(similar.T, own)) / 2

    def evaluation_loop(
        self, dataloader: Any, description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        """Measure against all docstrings of the split."""
        self.model.eval()
        found = measure_retrieval(self.model, dataloader.dataset, self.data_collator)
        metrics = {f"{metric_key_prefix}_loss": found.loss, f"{metric_key_prefix}_mrr": found.score}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


def embed(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Means of the last hidden states over the tokens, of length 1."""
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    states = model(**inputs).last_hidden_state * mask
    return nn.functional.normalize(states.sum(1) / mask.sum(1), dim=-1)


@torch.no_grad()
def measure_retrieval(model: nn.Module, rows: Dataset, collate: Callable[[list[Any]], Any]) -> Measured:
    """Cross-entropy of each signature's docstring among all of the split, and its reciprocal rank."""
    halves = [embed(model, batch).chunk(2) for batch in batches(rows, collate, 32)]
    a, b = (torch.cat(half) for half in zip(*halves))
    similar, own = a @ b.T, torch.arange(len(a))
    losses = nn.functional.cross_entropy(similar / TEMPERATURE, own, reduction="none")
    ranks = (similar >= similar.diagonal()[:, None]).sum(1)
    return Measured(losses, torch.ones_like(losses), 1 / ranks.float())


ENCODER = {"batch_size": 16, "epochs": 2, "group_by_length": True}

TASKS: dict[str, StudyTask] = {
    "sst2": StudyTask({**ENCODER, "max_length": 48}, Classification(), _sst2, measure_labels),
    "stdlib-docs": StudyTask({**ENCODER, "max_length": 64}, Classification(), _stdlib_docs, measure_labels),
    "retrieval": StudyTask(
        {"batch_size": 32, "epochs": 2, "max_length": 48}, Retrieval(), _retrieval, measure_retrieval
    ),
    "gsm8k": StudyTask(
        {"batch_size": 4, "epochs": 1, "max_length": 512, "warmup_steps": 0.25},
        find_kind("generation"),
        _gsm8k,
        measure_answers,
    ),
}
