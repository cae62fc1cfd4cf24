"""One command as a whole process: its wall and processor seconds, and the most private memory that it held.

Private is ``RssAnon`` of ``/proc/PID/status``, sampled: the pages of a mapped file are clean and don't count. Both
seconds and memory are those of the process and of all that it started, together.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
    """Keep the largest private memory of a process and its descendants in ``peak`` until it ended."""
    while not ended.wait(INTERVAL):
        peak[0] = max(peak[0], sum(map(_private, _family(pid))))


def _family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for member in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _private(pid: int) -> int:
    """Return the private memory of one process in bytes, 0 of one that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return 0
