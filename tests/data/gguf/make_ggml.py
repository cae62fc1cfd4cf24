"""Write matrices that ggml, the library of llama.cpp, quantises in all types that are read, and their values by ggml.

    pip download --no-deps pywhispercpp; unzip pywhispercpp-*.whl -d whisper
    python make_ggml.py whisper/libggml-base.so

Version 1.5.1 of pywhispercpp, which made the committed files, has ggml 0.13.1.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROWS, COLUMNS = 2, 512
TYPES = (
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "BF16",
    "F16",
)

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Traits(ctypes.Structure):
    """The first fields of ggml's ``struct ggml_type_traits``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("is_quantised", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
    )


def main(path: str) -> None:
    """Write the files."""
    library = ctypes.CDLL(path)
    library.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    library.ggml_row_size.restype = library.ggml_quantize_chunk.restype = ctypes.c_size_t
    weights = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    writer = gguf.GGUFWriter(HERE / "ggml.gguf", "unheard-of")
    values = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        traits = library.ggml_get_type_traits(kind.value).contents
        stored = np.zeros((ROWS, library.ggml_row_size(kind.value, ctypes.c_int64(COLUMNS))), dtype=np.uint8)
        sizes = (ctypes.c_int64(0), ctypes.c_int64(ROWS), ctypes.c_int64(COLUMNS))
        pointers = (ctypes.c_void_p(weights.ctypes.data), ctypes.c_void_p(stored.ctypes.data))
        assert library.ggml_quantize_chunk(kind.value, *pointers, *sizes, None) == stored.nbytes
        found = np.zeros((ROWS, COLUMNS), dtype=np.float32)
        traits.to_float(stored.ctypes.data, found.ctypes.data, found.size)
        writer.add_tensor(name, stored, raw_dtype=kind)
        values[name] = torch.from_numpy(found)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file({"original": torch.from_numpy(weights), **values}, HERE / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1])
