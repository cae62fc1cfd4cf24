"""The quantised formats that are read."""

from __future__ import annotations

from weightspace.checkpoints.quantised import awq, bitsandbytes, compressed_integers, fp8, gptq, mxfp4, nvfp4
from weightspace.checkpoints.quantised.format import Format

FORMATS: tuple[Format, ...] = (
    fp8.FORMAT,
    mxfp4.FORMAT,
    nvfp4.FORMAT,
    bitsandbytes.FORMAT,
    gptq.FORMAT,
    awq.FORMAT,
    compressed_integers.FORMAT,
)
