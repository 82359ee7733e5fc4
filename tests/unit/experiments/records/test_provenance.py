"""Provenance: complete where it can be, silent where it cannot, and fit to be published."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import torch

import glora
from glora.experiments.records import provenance
from glora.experiments.records.provenance import collect_provenance, utc_now


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ("git", *identity, "-C", str(folder), *arguments), check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    source = tmp_path / "src" / "package.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "src/package.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return source


def test_versions_and_machine_are_there() -> None:
    found = collect_provenance(data_fingerprint="abc")
    assert found.versions["python"] == platform.python_version()
    assert found.versions["glora"] == glora.__version__
    assert found.versions["torch"] == torch.__version__
    assert {"transformers", "peft", "accelerate"} <= found.versions.keys()
    assert found.machine.torch_threads == torch.get_num_threads()
    assert found.machine.cores >= 1
    assert found.machine.cpu
    assert found.data_fingerprint == "abc"


def test_the_facts_of_a_process_are_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = collect_provenance(data_fingerprint="a")
    monkeypatch.setattr(provenance, "_versions", lambda: pytest.fail("collected again"))
    assert collect_provenance(data_fingerprint="b") == first.model_copy(update={"data_fingerprint": "b"})


def test_threads_are_those_of_now() -> None:
    before = torch.get_num_threads()
    collect_provenance()
    try:
        torch.set_num_threads(before + 1)
        assert collect_provenance().machine.torch_threads == before + 1
    finally:
        torch.set_num_threads(before)


def test_no_host_user_or_folder_is_recorded() -> None:
    written = collect_provenance().model_dump_json()
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd()), str(Path(glora.__file__).parent)):
        assert len(private) < 4 or private not in written


def test_git_state_tells_commit_and_changes(checkout: Path) -> None:
    state = provenance._git_state(checkout)
    assert state is not None
    assert state.commit == git(checkout.parent, "rev-parse", "HEAD")
    assert not state.dirty
    checkout.write_text("x = 2\n")
    changed = provenance._git_state(checkout)
    assert changed is not None
    assert changed.dirty


def test_a_file_that_no_repository_tracks_has_no_git_state(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for folder in (checkout.parent / "site-packages", tmp_path_factory.mktemp("outside")):
        folder.mkdir(exist_ok=True)
        (folder / "glora.py").write_text("")
        assert provenance._git_state(folder / "glora.py") is None


def test_nothing_fails_where_nothing_can_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("not on this system")

    monkeypatch.setattr(provenance.subprocess, "run", broken)
    monkeypatch.setattr(provenance.importlib.metadata, "version", broken)
    monkeypatch.setattr(provenance.Path, "read_text", broken)
    monkeypatch.setattr(os, "sysconf", broken, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", broken, raising=False)
    monkeypatch.setattr(provenance, "_accelerator", broken)
    found = provenance._of_process.__wrapped__(0)
    assert found.git is None
    assert set(found.versions) == {"python", "glora"}
    assert found.machine.memory_bytes is None
    assert found.machine.cpu


def test_the_time_is_utc() -> None:
    now = datetime.fromisoformat(utc_now())
    assert now.utcoffset() == timedelta(0)
    assert abs(datetime.now(timezone.utc) - now) < timedelta(minutes=1)
