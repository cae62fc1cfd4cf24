"""LoRA adapters: the public names of ``weightspace.lora``."""

from weightspace.lora import extract_lora, extract_lora_files, read_adapter, write_adapter

__all__ = ["extract_lora", "extract_lora_files", "read_adapter", "write_adapter"]
