"""Start-up time of a new process: the command line's help, and the imports."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "glora --help": ["-m", "glora", "--help"],
    "import glora": ["-c", "import glora"],
    "import peft": ["-c", "import peft"],
    "from glora import RankAllocationCallback": ["-c", "from glora import RankAllocationCallback"],
    "from transformers import Trainer; import peft": ["-c", "from transformers import Trainer; import peft"],
}


def processor_seconds() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_up(runs: int, clock: str) -> dict[str, list[float]]:
    """Seconds of each command in each round; one round before them, that fills the caches, is not counted."""
    now = processor_seconds if clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(-1, runs):
        for name, arguments in COMMANDS.items():
            start = now()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            if number >= 0:
                seconds[name].append(round(now() - start, 4))
    return seconds
