"""Ways to damage what begins with a header: safetensors files, their metadata, and arrays."""

from __future__ import annotations

import json
import random
import struct

from mutations import BLIND, Mutation, changed_json, changed_structure, changed_yaml, text_of


def changed_header(content: bytes, draw: random.Random) -> bytes:
    """Change what the header of a safetensors file says, its length right."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = text_of(changed_structure(header, draw), draw).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def changed_metadata(content: bytes, draw: random.Random) -> bytes:
    """Change what JSON or YAML in the metadata of a safetensors file says."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    key = draw.choice([key for key in metadata if key != "format"])
    change = changed_json if metadata[key].startswith(("{", "[")) else draw.choice((*BLIND, changed_yaml))
    metadata[key] = change(metadata[key].encode(), draw).decode("utf-8", "replace")
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def changed_array(content: bytes, draw: random.Random) -> bytes:
    """Change what the header of an array says."""
    shape = draw.choice(
        ("(3, 2**40)", "(-1,)", "(9**99,)", "(3,)", "(" * 500, "(1e9,)", "([],)", "(0, 3)", "({},)", "()")
    )
    kind = draw.choice(
        ("|O", "<f8", "<f4", ">i2", "|S5", "<U3", "[('a','<f8')]", "<M8[s]", "|V99999999999", "x" * 3000)
    )
    text = f"{{'descr': {kind if kind[0] == '[' else repr(kind)}, 'fortran_order': {draw.choice((True, False, 3))}, "
    text = (text + f"'shape': {shape}, }}").encode()
    return content[:8] + struct.pack("<H", len(text)) + text + content[-72:]


#: Those of a safetensors file.
HEADER: tuple[Mutation, ...] = (*BLIND, changed_header, changed_header, changed_header)
