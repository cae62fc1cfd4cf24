"""The memory that a merge takes, measured in a process that did nothing else."""

import ctypes
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from weightspace.merging import MergeReport, merge_files

#: The option of glibc's ``mallopt`` that sets from how many bytes on an allocation is returned as soon as it is freed.
MMAP_THRESHOLD = -3


@contextmanager
def measuring_process() -> Iterator[ProcessPoolExecutor]:
    """Start a process for ``measure_merge``: memory that other tests left free in theirs would be found again.

    MKL would keep the buffers of a thread that has ended, which the next merge may find or not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKL_DISABLE_FAST_MM", "1")  # read when the process imports torch
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _return_memory) as process:
            yield process


def _return_memory() -> None:
    torch.set_num_threads(1)
    ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, 2**16)


def measure_merge(sources: Sequence[Path], output: Path, options: dict[str, Any]) -> tuple[int, MergeReport]:
    """Merge some times, of which the first one imports what it needs, and return the fewest bytes that one took."""
    runs = []
    for _ in range(3):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before, peak = _private_memory(), [0]
        with _sampled(peak):
            report = merge_files(sources, output, **options)
        runs.append((peak[0] - before, report))
    return min(runs, key=lambda run: run[0])


def _private_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def _sampled(peak: list[int]) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.001):
            peak[0] = max(peak[0], _private_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
