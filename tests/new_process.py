"""New processes that cost milliseconds: they are forked from a server that has imported the libraries and done nothing else.

So each starts as clean as an interpreter that a user starts, which would need ten seconds for its imports.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

import glora.allocator
import glora.trainer_callback
from glora import cli

with contextlib.suppress(ImportError):  # the experiments are an extra
    import glora.experiments.report.write
    import glora.experiments.search.trials
    import glora.experiments.training.generative
    import glora.experiments.training.run  # noqa: F401

gc.freeze()  # so that garbage is not looked for in the libraries, and their memory stays shared


def fork(target: Callable[..., Any], *arguments: Any, daemon: bool = False) -> BaseProcess:
    """Start `target(*arguments)` in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments, daemon=daemon)
    with pytest.MonkeyPatch.context() as patch:  # the server finds the modules of the tests by this
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent), prepend=os.pathsep)
        process.start()
    return process


@dataclass(frozen=True)
class Program:
    """A program that runs, and the folder of the files `out` and `err` with what it prints."""

    process: BaseProcess
    folder: Path

    def printed(self, file: str = "out") -> str:
        return (self.folder / file).read_text(encoding="utf-8")

    def wait(self, seconds: float = 280) -> subprocess.CompletedProcess[str]:
        self.process.join(seconds)
        if late := self.process.is_alive():
            self.process.kill()
            self.process.join()
        done = subprocess.CompletedProcess((), self.process.exitcode, self.printed(), self.printed("err"))
        shutil.rmtree(self.folder)
        assert not late, f"still running after {seconds} s: {done}"
        return done


def start_glora(*arguments: object, **environment: str) -> Program:
    """Start `glora ...`."""
    return _start(cli.main, ["glora", *map(str, arguments)], environment)


def run_glora(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `glora ...`; a traceback is an error."""
    done = start_glora(*arguments, **environment).wait()
    assert "Traceback" not in done.stderr, done.stderr
    return done


def run_program(main: Callable[[], Any], *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the main function of a program whose name and arguments are `command`."""
    return _start(main, list(map(str, command)), environment).wait()


def run_script(path: Path, *arguments: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python file in a folder."""
    return _start(_script, [str(path), *map(str, arguments)], environment, folder).wait()


def _start(
    main: Callable[[], Any], command: list[str], environment: Mapping[str, str], folder: Path | None = None
) -> Program:
    printed = Path(tempfile.mkdtemp(prefix="program-"))
    for name in ("out", "err"):
        (printed / name).touch()
    return Program(fork(_inside, main, command, dict(environment), folder or Path.cwd(), printed), printed)


def _inside(
    main: Callable[[], Any], command: list[str], environment: dict[str, str], folder: Path, printed: Path
) -> None:
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with (printed / name).open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    os.environ.update(environment)
    tempfile.tempdir = None  # the environment may name another
    os.chdir(folder)
    sys.argv = command
    main()


def _script() -> None:
    runpy.run_path(sys.argv[0], run_name="__main__")
