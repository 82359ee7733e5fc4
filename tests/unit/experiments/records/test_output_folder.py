"""One command at a time in an output folder; what killed ones left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glora.experiments.records.output_folder import LOCK_FILE, SCRATCH, FolderInUseError, folder_in_use
from glora.experiments.records.store import RUNS_FOLDER, process_tag

HOLDS = """
import sys, time
from pathlib import Path
from glora.experiments.records.output_folder import folder_in_use
with folder_in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_second_command_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(FolderInUseError, match=f"in use by process {first.pid} .*--storage"),
            folder_in_use(tmp_path),
        ):
            raise AssertionError
        first.send_signal(signal.SIGKILL)
        first.wait()
    with folder_in_use(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] in ([LOCK_FILE], [])


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine, dead = process_tag(), process_tag().replace(f"-{os.getpid()}", f"-{ended.pid}")
    other_machine = f"{'0' * 8}-{ended.pid}"
    (tmp_path / RUNS_FOLDER).mkdir()
    for tag in (mine, dead, other_machine):
        (tmp_path / RUNS_FOLDER / f".record.json.{tag}.tmp").write_text("half")
        (tmp_path / f"{SCRATCH}{tag}-abc").mkdir()
        (tmp_path / f"{SCRATCH}{tag}-abc" / "checkpoint").write_text("half")
    with folder_in_use(tmp_path):
        pass
    left = [path.name for path in (*tmp_path.iterdir(), *(tmp_path / RUNS_FOLDER).iterdir()) if path.name != LOCK_FILE]
    assert len(left) == 1 + 4
    assert not [name for name in left if dead in name]
