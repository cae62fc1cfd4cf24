"""The quantised formats that are read."""

from __future__ import annotations

from weightspace.checkpoints.quantised import fp8
from weightspace.checkpoints.quantised.format import Format

FORMATS: tuple[Format, ...] = (fp8.FORMAT,)
