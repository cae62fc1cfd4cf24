"""One command as a whole process: its wall and processor seconds, and the most private memory that it held.

Private is ``RssAnon`` of ``/proc/PID/status``, sampled: the pages of a mapped file are clean and don't count.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds from one sample of the memory to the next.
INTERVAL = 0.005


class RunError(Exception):
    """A run that failed; its last words."""


@dataclass(frozen=True)
class Usage:
    """What one run took; a MB has 10⁶ bytes."""

    seconds: float
    processor_seconds: float
    private_mb: float


def run_whole(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Usage:
    """Run a command in a folder and return what it took.

    Raises:
        RunError: the command failed.
    """
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        peak, ended = [0], threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, peak, ended))
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            seconds = time.perf_counter() - start
            ended.set()
            sampler.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace")[-2000:]
            raise RunError(f"{' '.join(command)} ended with {process.returncode}:\n{words}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, peak[0] / 1e6)


def _sample(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Keep the largest private memory of a process in ``peak`` until it ended."""
    while not ended.wait(INTERVAL):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
        peak[0] = max(peak[0], *found) if found else peak[0]
