"""Provenance of a result: versions, git state and machine, collected once per process.

Nothing here fails: unknown facts are left out, because a missing git binary must not lose a finished run. Nothing here names a
host, a user or a folder, because records are meant to be published.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import torch

import glora
from glora.experiments.records.schema import GitState, Machine, Provenance

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn")

T = TypeVar("T")

_PROCESS_STARTED_AT = datetime.now(timezone.utc).isoformat(timespec="microseconds")


def collect_provenance(*, data_fingerprint: str | None = None) -> Provenance:
    """Return the software, the machine and the git state of this process.

    Args:
        data_fingerprint: hash of the run's examples.
    """
    known = _of_process(os.getpid())
    machine = known.machine.model_copy(update={"torch_threads": torch.get_num_threads()})  # may change within a process
    return known.model_copy(update={"machine": machine, "data_fingerprint": data_fingerprint})


@functools.cache
def _of_process(_process: int) -> Provenance:
    """A process runs the code that it imported, even if the checkout changes meanwhile."""
    return Provenance(
        versions=_versions(),
        git=_git_state(Path(glora.__file__).resolve()),
        machine=_machine(),
        process_started_at=_PROCESS_STARTED_AT,
        data_fingerprint=None,
        model_fingerprint=None,
    )


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, to the second: 2026-01-31T12:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _or_none(find_out: Callable[[], T]) -> T | None:
    """The answer, or None where the system does not give one."""
    try:
        return find_out()
    except Exception:
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "glora": glora.__version__}
    for package in PACKAGES:
        version = _or_none(lambda name=package: importlib.metadata.version(name))  # type: ignore[misc]
        if version:
            versions[package] = version
    return versions


def _git_state(source: Path) -> GitState | None:
    """Commit and dirty flag of the repository that tracks `source`; None if none does.

    Being inside a work tree is not enough: a virtual environment there is not the repository's code.
    """

    def git(*arguments: str) -> str:
        finished = subprocess.run(
            ("git", "-C", str(source.parent), *arguments),
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # reading the state must not touch the index
        )
        return finished.stdout.strip()

    def state() -> GitState:
        git("ls-files", "--error-unmatch", source.name)
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return GitState(commit=git("rev-parse", "HEAD"), dirty=dirty)

    return _or_none(state)


def _machine() -> Machine:
    cores = _or_none(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or 1
    return Machine(
        platform=platform.platform(),
        cpu=_cpu_model(),
        cores=cores,
        memory_bytes=_or_none(lambda: os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        accelerator=_or_none(_accelerator),
        torch_threads=torch.get_num_threads(),
    )


def _cpu_model() -> str:
    def linux() -> str:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name"))

    def macos() -> str:
        command = ("sysctl", "-n", "machdep.cpu.brand_string")
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    return _or_none(linux) or _or_none(macos) or platform.processor() or platform.machine() or "unknown"


def _accelerator() -> str | None:
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return torch.cuda.get_device_name() + (f" (1 of {count})" if count > 1 else "")
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return None
