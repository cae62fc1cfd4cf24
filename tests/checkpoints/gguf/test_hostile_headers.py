"""False GGUF headers are refused with one line that names the file, before what they declare is allocated."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightspace as ws
from weightspace.checkpoints import load_metadata
from weightspace.checkpoints.gguf.header import encode_header, read_header
from weightspace.errors import CheckpointError


def text(content: str | bytes) -> bytes:
    encoded = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(encoded)) + encoded


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple[int, ...], kind: int = 0, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


FAMILY = field("general.architecture", 8, text("qwen2"))
W, V = entry("output_norm.weight", (8,)), entry("token_embd.weight", (32, 2), start=32)


def header(fields: list[bytes], tensors: list[bytes], version: int = 3, counts: tuple[int, int] | None = None) -> bytes:
    tensors_count, fields_count = counts or (len(tensors), len(fields))
    return b"GGUF" + struct.pack("<IQQ", version, tensors_count, fields_count) + b"".join([*fields, *tensors])


def whole(content: bytes, data: int = 288, alignment: int = 32) -> bytes:
    return content + bytes(-len(content) % alignment) + bytes(data)


GOOD = whole(header([FAMILY], [W, V]))

#: What is wrong -> (file, part of the message).
LIES = {
    "only a magic": (b"GGUF", r"the beginning ends at byte 8, but the file has 4"),
    "another beginning": (b"GGUX" + GOOD[4:], r"is not a GGUF file: it begins with b'GGUX'"),
    "version 1": (header([FAMILY], [W, V], version=1), "of version 1, expected 2 or 3"),
    "big-endian": (header([FAMILY], [W, V], version=3 << 24), "big-endian"),
    "2⁶⁴ − 1 fields": (header([FAMILY], [W, V], counts=(2, 2**64 - 1)), "the key of a field|the field"),
    "2⁶⁴ − 1 tensors": (header([FAMILY], [W, V], counts=(2**64 - 1, 1)), "the name of a tensor ends|no tensor|entry"),
    "a key of 2⁶³ bytes": (header([struct.pack("<Q", 2**63)], []), "the key of a field has 9,223,372,036,854,775,808"),
    "a string of 2⁶³ bytes": (header([field("a", 8, struct.pack("<Q", 2**63))], []), "the field 'a' ends at byte"),
    "2⁶³ strings": (header([field("a", 9, struct.pack("<IQ", 8, 2**63))], []), "the field 'a' ends at byte"),
    "2⁶³ numbers": (header([field("a", 9, struct.pack("<IQ", 6, 2**63))], []), "the field 'a' ends at byte"),
    "a list of lists": (header([field("a", 9, struct.pack("<IQ", 9, 1))], []), "the field 'a' has type 9"),
    "an unknown type of field": (header([field("a", 77, bytes(8))], []), "the field 'a' has type 77"),
    "a field twice": (header([FAMILY, FAMILY], [W]), "'general.architecture' occurs twice"),
    "a tensor twice": (header([FAMILY], [W, W]), "the tensor 'output_norm.weight' occurs twice"),
    "a key that is no text": (header([text(b"\xff") + bytes(12)], []), "the key of a field is not valid UTF-8"),
    "a name that is no text": (header([], [text(b"\xff") + bytes(64)]), "the name of a tensor is not valid UTF-8"),
    "a million dimensions": (header([], [text("w") + struct.pack("<I", 10**6)]), "'w' has 1,000,000 dimensions"),
    "an unknown type": (header([], [entry("w", (8,), 99)]), "'w' has type 99, which is not known"),
    "a type that is not read": (header([], [entry("w", (256,), 16)]), "'w' has type IQ2_XXS, which is not read"),
    "a removed type": (header([], [entry("w", (256,), 4)]), "'w' has type 4, which is not known"),
    "a shape no tensor has": (header([], [entry("w", (2**40, 2**40))]), "'w' has shape"),
    "no elements of many": (header([], [entry("w", (2**63, 2**63, 0))]), "'w' has shape"),
    "rows of half a block": (header([], [entry("w", (16, 2), 8)]), "no whole blocks of 32"),
    "beyond the file": (whole(header([], [entry("w", (2**40,))])), "'w' ends at byte 4,398,046,511,"),
    "an offset beyond the file": (whole(header([], [entry("w", (8,), start=2**63)])), "leaves a gap after the header"),
    "overlap": (whole(header([], [W, entry("v", (8,), start=0)])), "overlaps 'output_norm.weight'|overlaps 'v'"),
    "a part of another tensor": (whole(header([], [entry("w", (64,)), entry("v", (8,), start=32)])), "overlaps 'w'"),
    "an offset that is not aligned": (whole(header([], [W, entry("v", (8,), start=36)])), "leaves a gap"),
    "a gap": (whole(header([], [W, entry("v", (8,), start=64)])), "'v' leaves a gap after 'output_norm.weight'"),
    "alignment 0": (header([field("general.alignment", 4, bytes(4))], [W]), "general.alignment is 0"),
    "alignment 24": (header([field("general.alignment", 4, struct.pack("<I", 24))], [W]), "general.alignment is 24"),
    "an alignment of text": (header([field("general.alignment", 8, text("32"))], [W]), "general.alignment is '32'"),
    "a part of a model": (
        whole(header([field("split.count", 2, b"\3\0"), field("split.no", 2, b"\1\0")], [W])),
        r"is part 2 of 3 of a split model",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_lie_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, message = LIES[case]
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        ws.load_checkpoint(tmp_path / "a.gguf")
    assert "a.gguf" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


HEADS = "llama.attention.head_count"
LLAMA = field("general.architecture", 8, text("llama"))
Q = entry("blk.0.attn_q.weight", (8, 4))


@pytest.mark.parametrize(
    "heads",
    [b"", *(field(HEADS, 4, struct.pack("<I", heads)) for heads in (0, 3, 4, 2**31)), field(HEADS, 8, text("2"))],
)
def test_heads_that_do_not_fit_are_refused(heads: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(whole(header([LLAMA, *filter(None, [heads])], [Q])))
    with pytest.raises(CheckpointError, match=r"a\.gguf: the rows of 'blk\.0\.attn_q\.weight'.* are stored by head"):
        ws.load_checkpoint(tmp_path / "a.gguf")


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for length in range(1, len(GOOD) - 1):
        path.write_bytes(GOOD[:length])
        with pytest.raises(CheckpointError):
            ws.load_checkpoint(path)
    path.write_bytes(GOOD)
    assert ws.load_checkpoint(path).keys() == {"model.norm.weight", "model.embed_tokens.weight"}
    assert load_metadata(path) == {"general.architecture": "qwen2"}


def test_a_header_is_written_as_it_was_read(tmp_path: Path) -> None:
    kinds = [field("f", 6, struct.pack("<f", 0.5)), field("l", 9, struct.pack("<IQ", 8, 2) + text("a") + text("é"))]
    content = whole(header([FAMILY, *kinds], [W, V]))
    (tmp_path / "a.gguf").write_bytes(content)
    found = read_header(tmp_path / "a.gguf")
    assert encode_header(found.fields, found.entries) == content[: found.data_start]
    assert (found.value("f"), found.value("l"), found.value("none")) == (0.5, ["a", "é"], None)


@pytest.mark.filterwarnings("ignore:.*the tensors keep their GGUF names")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 289), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(place: int, value: int, tmp_path: Path) -> None:
    content = bytearray(GOOD)
    content[place] = value
    (tmp_path / "a.gguf").write_bytes(content)
    message = ""
    try:
        ws.load_checkpoint(tmp_path / "a.gguf")
    except CheckpointError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
