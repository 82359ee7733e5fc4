"""Train LoRA at r = 16, make it smaller in several ways, and measure each on examples that nothing has seen.

    python -m benchmarks.compress.measure sst2 --data path/to/data

Every adapter and every measurement is kept; the same command goes on where it was stopped. `report.py` makes the tables.

The ways, at 50, 25 and 12.5 % of the parameters:

    global      compress_adapter: one cut through all matrices
    uniform     the same rank in every matrix, each by its best approximation; PEFT's convert_to_lora with an int does the same
    share       PEFT's convert_to_lora with a float: the same share of energy in every matrix, as large as the size allows
    first       the first columns of every matrix
    trained     LoRA of that size, trained from the start
    faster      the same at twice the learning rate, which a smaller rank can need
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.records import append_lines, read_lines
from peft import PeftModel
from peft.tuners.lora.conversion import convert_to_lora
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from transformers import set_seed

from glora import accelerate_lora
from glora.compress import CompressibleAdapter, Size
from glora.experiments.compression.evaluation import TaskEvaluation
from glora.experiments.config import RunConfig
from glora.experiments.data.loading import build_task_data, load_hub_dataset
from glora.experiments.data.registry import resolve_task
from glora.experiments.data.task import TaskData, limited
from glora.experiments.methods.base import MethodContext, Schedule
from glora.experiments.methods.registry import find_method
from glora.experiments.models.registry import PACKAGED_LLM
from glora.experiments.training.progress import RunProgress
from glora.experiments.training.task_kinds import find_kind
from glora.experiments.training.timed_trainer import RunRecorder
from glora.lora.adapter import RankedAdapter
from glora.lora.saved_adapter import read_adapter
from glora.scoring.spectrum import spectra

RECORDS = Path(__file__).with_name("records.jsonl")
RANK, SEEDS = 16, (0, 1, 2)
TRAINED = {"before": 1, "trained": 1, "faster": 2}
"""The ways that train an adapter, and the factor of the task's learning rate."""


@dataclass(frozen=True)
class Setting:
    """A task, the settings of its runs, the sizes, and what is read of it: (folder of the data files) -> task."""

    settings: dict[str, Any]
    sizes: tuple[float, ...]
    read: Callable[[Path], TaskData]


def read_sst2(data: Path) -> TaskData:
    """2,500 examples of the training file, and as evaluation split 5,000 others of it."""
    task, read = resolve_task("sst2", str(data / "glue")).read(load_hub_dataset, only_train=True)
    drawn, train = limited(read["train"], 7500), limited(read["train"], 2500)
    seen = set(zip(*train.columns.values()))
    rest = [place for place, example in enumerate(zip(*drawn.columns.values())) if example not in seen]
    rest.sort(key=lambda place: len(drawn.columns["text_a"][place]))  # batches of one length have no padding
    return build_task_data(task, train, {UNUSED: drawn.at(rest)})


def read_rte(data: Path) -> TaskData:
    """All of it; its development split, which nothing is chosen by, is measured."""
    task, read = resolve_task("rte", str(data / "glue")).read(load_hub_dataset, only_train=False)
    return build_task_data(task, read["train"], {UNUSED: read["validation"]})


def read_gsm8k(data: Path) -> TaskData:
    """160 problems, and 100 of the test problems, whose answers' loss is measured; none is written."""
    task, read = resolve_task("gsm8k", str(data / "gsm8k")).read(load_hub_dataset, only_train=False)
    task = task.judged_by_loss()
    return build_task_data(task, limited(read["train"], 160), {UNUSED: limited(read["test"], 100)})


UNUSED = "unused"
ENCODER = {"learning_rate": 1.5e-3, "batch_size": 16, "group_by_length": True}
SETTINGS: dict[str, Setting] = {
    "sst2": Setting({**ENCODER, "epochs": 2, "max_length": 48}, (0.5, 0.25, 0.125), read_sst2),
    "rte": Setting({**ENCODER, "learning_rate": 5e-4, "epochs": 4, "max_length": 128}, (0.25,), read_rte),
    "gsm8k": Setting(
        {"model": PACKAGED_LLM.model, "learning_rate": 1e-3, "batch_size": 4, "epochs": 1, "max_length": 512},
        (0.25,),
        read_gsm8k,
    ),
}


def train(config: RunConfig, task: TaskData, folder: Path) -> None:
    """Train one adapter as `glora compare` does, and save it."""
    kind = find_kind(task.kind)
    model, tokenizer = kind.load_model(config, task)
    tokens = kind.tokenize(config, task, model, tokenizer)
    tokens.evaluation[UNUSED] = tokens.evaluation[UNUSED].select(range(32))  # not measured here
    set_seed(config.seed)
    schedule = Schedule.of(len(task.train), config.batch_size, config.epochs)
    targets, heads = kind.target_modules(model, None), kind.head_modules(model)
    context = MethodContext(
        model, config, schedule, targets, heads, batches=lambda: iter(()), task_type=kind.adapter_task_type
    )
    adapted = find_method("lora").apply(context)
    accelerate_lora(adapted.model)
    with tempfile.TemporaryDirectory() as scratch:
        recorder = RunRecorder(adapted, UNUSED, RunProgress())
        kind.trainer(config, adapted, tokens, tokenizer, task, recorder, Path(scratch)).train()
    adapted.model.save_pretrained(folder)


def smaller(adapter: Path, way: str, size: float, base: Callable[[], Any], folder: Path) -> float | None:
    """Write a smaller adapter and return the energy that it keeps, where that is known."""
    if way in ("global", "uniform"):
        read = CompressibleAdapter(adapter)
        return read.write(read.cut(Size(parameters=size, uniform=way == "uniform")), folder).energy
    model = PeftModel.from_pretrained(base(), str(adapter), is_trainable=True)
    if way == "first":
        ranked = RankedAdapter(model)
        ranked.set_ranks(dict.fromkeys(ranked.matrices, int(RANK * size)), keep="first")
        model.save_pretrained(folder)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the adapter is LoRA already
        config, tensors = convert_to_lora(model, largest_share(adapter, size))
    config.save_pretrained(str(folder))
    # of a module in modules_to_save that has submodules, here the pooler, PEFT 0.21 loses the submodules' names
    kept = {key: tensor for key, tensor in tensors.items() if ".lora_" in key} | read_adapter(adapter).others
    save_file({key: tensor.contiguous().clone() for key, tensor in kept.items()}, folder / SAFETENSORS_WEIGHTS_NAME)
    return None


def largest_share(adapter: Path, size: float) -> float:
    """Return the share of each matrix's energy at which PEFT's conversion has at most this size."""
    matrices = read_adapter(adapter).matrices
    budget = size * sum(matrix.rank * matrix.cost for matrix in matrices.values())
    squares = {name: torch.tensor(values).square() for name, values in spectra(matrices.values()).items()}
    low, high = 0.0, 1.0
    for _ in range(30):
        share = (low + high) / 2
        ranks = {name: 1 + int((values.cumsum(0) < share * values.sum()).sum()) for name, values in squares.items()}
        fits = sum(rank * matrices[name].cost for name, rank in ranks.items()) <= budget
        low, high = (share, high) if fits else (low, share)
    return low - 1e-6  # PEFT decomposes the whole Δ, with other rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SETTINGS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with glue/ and gsm8k/")
    parser.add_argument("--adapters", type=Path, default=Path("results/compress"), help="where adapters are kept")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.task]
    task = setting.read(arguments.data)
    done = [record for record in read_lines(RECORDS) if record["task"] == arguments.task]
    known = {(record["seed"], record["way"], record["size"]) for record in done}
    wanted = [(seed, "before", 1.0) for seed in SEEDS]
    wanted += [
        (seed, way, size)
        for way in ("global", "uniform", "share", "trained", "first", "faster")
        for size in reversed(setting.sizes)
        for seed in SEEDS
    ]
    kind = find_kind(task.kind)
    for seed, way, size in wanted:
        if (seed, way, size) in known:
            continue
        config = RunConfig(**setting.settings, task=arguments.task, method="lora", rank=RANK, seed=seed)
        adapter = arguments.adapters / arguments.task / f"r{RANK}-lr{config.learning_rate:g}-seed{seed}"
        folder = adapter.with_name(f"{adapter.name}-{way}-{size}")
        energy: float | None = None
        if way in TRAINED:
            rank, learning_rate = int(RANK * size), TRAINED[way] * config.learning_rate
            folder = adapter.with_name(f"r{rank}-lr{learning_rate:g}-seed{seed}")
            if not folder.exists():
                train(config.with_settings({"rank": rank, "learning_rate": learning_rate}), task, folder)
        else:
            energy = smaller(adapter, way, size, lambda config=config: kind.load_model(config, task)[0], folder)
        record = {"task": arguments.task, "seed": seed, "way": way, "size": size, "energy": energy}
        saved = CompressibleAdapter(folder).saved.matrices.values()
        record["parameters"] = sum(matrix.rank * matrix.cost for matrix in saved)
        record |= TaskEvaluation(config, task).measure(folder)
        append_lines(RECORDS, [record])
        print(record, flush=True)


if __name__ == "__main__":
    main()
