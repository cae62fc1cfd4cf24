"""Cost of planning a recipe of 80 layers and four models, relative to reading the same headers with the json module."""

from __future__ import annotations

import json
import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from weightspace.merging import merge_files

LAYERS, SHARDS, RUNS = 80, 30, 7
HIDDEN, INNER, VOCABULARY, KEYS = 256, 896, 32000, 32  # narrow: a plan costs what its tensors are in number

RECIPES = {
    "linear": """
merge_method: linear
models: [{model: a}, {model: b}, {model: c}, {model: d}]
parameters: {weight: 1}
""",
    "ties": """
merge_method: ties
base_model: a
models:
  - {model: b, parameters: {weight: [0.2, 0.8], density: [{filter: mlp, value: [0.3, 0.9]}, {value: 0.5}]}}
  - {model: c, parameters: {weight: 0.5, density: 0.5}}
  - {model: d, parameters: {weight: [{filter: self_attn, value: 0.1}, {value: [0.1, 0.5, 0.1]}], density: 0.4}}
dtype: bfloat16
""",
    "stacked slices": """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 40]}]
  - sources: [{model: b, layer_range: [20, 60]}]
  - sources: [{model: c, layer_range: [40, 70]}]
  - sources: [{model: d, layer_range: [60, 80]}]
""",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the tensors of a Llama with the layers of one of 70 billion parameters."""
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KEYS, HIDDEN),
        "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for index in range(LAYERS):
        named |= {f"model.layers.{index}.{part}.weight": shape for part, shape in layer.items()}
    return named | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_model(folder: Path) -> None:
    """Write a model of the right headers and sizes; its tensors are holes that take no room."""
    folder.mkdir()
    named = list(shapes().items())
    each = -(-len(named) // SHARDS)
    index: dict[str, str] = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for tensor, shape in named[number * each : (number + 1) * each]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            index[tensor], at = name, at + size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(8 + len(encoded) + at)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": HIDDEN, "torch_dtype": "bfloat16"}))


def read_headers(folder: Path) -> None:
    """Read what every plan has to read: configurations, indices and headers."""
    for file in sorted(folder.glob("*/*")):
        if file.suffix == ".json":
            json.loads(file.read_bytes())
            continue
        with open(file, "rb") as opened:
            json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the medians of wall seconds and of processor seconds, after a first call that is not counted."""
    runs: list[tuple[float, float]] = []
    for _ in range(RUNS + 1):
        wall, processor = time.perf_counter(), time.process_time()
        call()
        runs.append((time.perf_counter() - wall, time.process_time() - processor))
    return statistics.median(run[0] for run in runs[1:]), statistics.median(run[1] for run in runs[1:])


def main() -> None:
    """Print seconds of planning each recipe, and what they are of those of reading the headers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        for model in "abcd":
            write_model(folder / model)
        wall, floor = timed(lambda: read_headers(folder))
        print(f"{'headers':16} {wall:.3f} s, {floor:.3f} s of a processor")
        for title, text in RECIPES.items():
            Path("recipe.yml").write_text(text)
            wall, processor = timed(lambda: merge_files("recipe.yml", "out", dry_run=True))
            print(
                f"{title:16} {wall:.3f} s, {processor:.3f} s of a processor, {processor / floor:.1f} times the headers"
            )
        os.chdir("/")


if __name__ == "__main__":
    main()
