"""LoRA adapters: factors of PEFT, diffusers and kohya, read from headers, applied on the fly, or extracted.

A factor pair changes its target by ``scale · B A``, of shape ``(out, in)`` as in ``torch.nn.Linear``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.lora.adapter import Adapter, Factors
    from weightspace.lora.config import Configuration, read_configuration
    from weightspace.lora.extract import Extraction, ExtractionReport, extract_lora, extract_lora_files
    from weightspace.lora.low_rank import Adapted
    from weightspace.lora.read import read_adapter
    from weightspace.lora.write import write_adapter

#: Public name -> the file that defines it.
_HOMES = {
    "Adapted": "low_rank",
    "Adapter": "adapter",
    "Configuration": "config",
    "Extraction": "extract",
    "ExtractionReport": "extract",
    "Factors": "adapter",
    "extract_lora": "extract",
    "extract_lora_files": "extract",
    "read_adapter": "read",
    "read_configuration": "config",
    "write_adapter": "write",
}

__all__ = [
    "Adapted",
    "Adapter",
    "Configuration",
    "Extraction",
    "ExtractionReport",
    "Factors",
    "extract_lora",
    "extract_lora_files",
    "read_adapter",
    "read_configuration",
    "write_adapter",
]

__getattr__ = resolver(__name__, _HOMES)
