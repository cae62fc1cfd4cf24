"""The types of GGUF tensors: how many elements a block has, and how many bytes hold it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from typing import NamedTuple


class BlockType(NamedTuple):
    """A type of tensor.

    Attributes:
        name: its name in ggml.
        number: its number in files.
        elements: elements of a block.
        nbytes: bytes of a block.
        dtype: safetensors name of the dtype if the elements are plain numbers, or None for a quantised type.
    """

    name: str
    number: int
    elements: int
    nbytes: int
    dtype: str | None = None

    @property
    def value_dtype(self) -> str:
        """The safetensors name of the dtype that its elements are read in."""
        return self.dtype or "F32"


_TYPES = (
    BlockType("F32", 0, 1, 4, "F32"),
    BlockType("F16", 1, 1, 2, "F16"),
    BlockType("Q4_0", 2, 32, 18),
    BlockType("Q4_1", 3, 32, 20),
    BlockType("Q5_0", 6, 32, 22),
    BlockType("Q5_1", 7, 32, 24),
    BlockType("Q8_0", 8, 32, 34),
    BlockType("Q2_K", 10, 256, 84),
    BlockType("Q3_K", 11, 256, 110),
    BlockType("Q4_K", 12, 256, 144),
    BlockType("Q5_K", 13, 256, 176),
    BlockType("Q6_K", 14, 256, 210),
    BlockType("IQ4_NL", 20, 32, 18),
    BlockType("IQ4_XS", 23, 256, 136),
    BlockType("I8", 24, 1, 1, "I8"),
    BlockType("I16", 25, 1, 2, "I16"),
    BlockType("I32", 26, 1, 4, "I32"),
    BlockType("I64", 27, 1, 8, "I64"),
    BlockType("F64", 28, 1, 8, "F64"),
    BlockType("BF16", 30, 1, 2, "BF16"),
)

#: Number in files, and name -> type, for the types that are read.
BY_NUMBER = {kind.number: kind for kind in _TYPES}
BY_NAME = {kind.name: kind for kind in _TYPES}

#: Number -> name of the types that are not read.
UNREAD = {
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S"},
    **{22: "IQ2_S", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"},
}
