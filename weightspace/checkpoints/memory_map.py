"""File offsets of memory-mapped tensors, from Linux's memory map of this process."""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path

from weightspace.checkpoints.state_dict import StateDict

#: One line per mapping: ``start-end permissions offset device inode path``.
_MAPS = Path("/proc/self/maps")


def mapped_places(path: Path, state: StateDict) -> dict[str, tuple[int, tuple[int, ...] | None]]:
    """Return the offsets of a file's memory-mapped tensors; tensors read otherwise are omitted.

    Args:
        path: the file.
        state: its tensors.

    Returns:
        Name -> first byte, and the strides of the elements if these aren't in row-major order.
    """
    mappings = _mappings(os.path.realpath(path))
    starts = [start for start, _, _ in mappings]
    places: dict[str, tuple[int, tuple[int, ...] | None]] = {}
    for name, tensor in state.items():
        if not tensor.numel() or tensor.is_conj() or tensor.is_neg():
            continue
        address = tensor.data_ptr()
        at = bisect_right(starts, address) - 1
        if at >= 0 and address < mappings[at][1]:
            strides = None if tensor.is_contiguous() else tensor.stride()
            places[name] = mappings[at][2] + address - mappings[at][0], strides
    return places


def _mappings(path: str) -> list[tuple[int, int, int]]:
    """Return the mappings of a file in order of address: start address, end address, and file offset."""
    found = []
    with suppress(OSError):  # not Linux
        for line in _MAPS.read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == path:
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16), int(fields[2], 16)))
    return sorted(found)
