"""The quantised formats that are read."""

from __future__ import annotations

from weightspace.checkpoints.quantised import bitsandbytes, fp8, mxfp4, nvfp4
from weightspace.checkpoints.quantised.format import Format

FORMATS: tuple[Format, ...] = (fp8.FORMAT, mxfp4.FORMAT, nvfp4.FORMAT, bitsandbytes.FORMAT)
