"""Union of two vocabularies of 150,000 tokens beside the plain merge of models of the same sizes: whole commands.

The models have one set of shapes. In the plain merge both have the first one's tokenizer; in the others the second
model has a tokenizer of its own, whose ids are permuted, and of which a part of the tokens is in no other one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from whole_process import Usage, run_whole

import weightspace as ws

TOKENS, WIDTH, LAYERS, INNER = 150_000, 1_024, 12, 4_096

#: Case: the share of the second model's tokens that the first lacks; None: the plain merge.
CASES = {"plain": None, "permuted": 0.0, "a tenth of its own": 0.1, "a third of its own": 0.33}


def main() -> None:
    """Print medians of time and memory, and the ratios to the plain merge of the same run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--executor", default="threads")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_models(folder)
        runs: dict[str, list[Usage]] = {case: [] for case in CASES}
        for _ in range(options.repeats):
            for number, case in enumerate(CASES):
                command = ("merge", f"{number}.yml", "-o", "out", "--no-hash", "--no-fsync")
                further = ("--executor", options.executor)
                runs[case].append(
                    run_whole((sys.executable, "-m", "weightspace", *command, *further), folder, os.environ)
                )
    plain = [usage.seconds for usage in runs["plain"]]
    work = [usage.processor_seconds for usage in runs["plain"]]
    print("| second vocabulary | s | / plain | processor s | / plain | MB |\n|---|---|---|---|---|---|")
    for case, usages in runs.items():
        seconds, busy = [usage.seconds for usage in usages], [usage.processor_seconds for usage in usages]
        cells = (case, *_with_ratio(seconds, plain), *_with_ratio(busy, work))
        print(f"| {' | '.join(cells)} | {max(usage.private_mb for usage in usages):.0f} |")


def _with_ratio(values: Sequence[float], others: Sequence[float]) -> tuple[str, str]:
    """Return the median of values, and that of their ratios run by run with the range."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    span = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"{statistics.median(values):.2f}", f"{statistics.median(ratios):.2f} ({span})"


def write_models(folder: Path) -> None:
    """Write a first model, a second one per case, and the recipes."""
    tokens = [f"Ġtoken{number}" for number in range(TOKENS)]
    write_model(folder / "first", 0, tokens)
    for number, (case, share) in enumerate(CASES.items()):
        own = list(tokens)
        if share is not None:
            random.Random(number).shuffle(own)
            count = int(share * TOKENS)
            own[TOKENS - count :] = [f"Ġother{index}" for index in range(count)]
        second = folder / f"second-{number}"
        if number:
            second.mkdir()
            for file in (folder / "second-0").glob("*.safetensors*"):
                (second / file.name).hardlink_to(file)
            write_beside(second, own)
        else:
            write_model(second, 1, own)
        keys = "" if share is None else "tokenizer: {source: union}\n"
        listed = [f"{{model: {model}, parameters: {{weight: .5}}}}" for model in ("first", second.name)]
        recipe = f"merge_method: linear\nmodels: [{', '.join(listed)}]\ndtype: bfloat16\n{keys}"
        (folder / f"{number}.yml").write_text(recipe)
        print(f"{case}: written", file=sys.stderr)


def write_model(folder: Path, seed: int, tokens: Sequence[str]) -> None:
    """Write a Llama-shaped model."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (TOKENS, WIDTH))
    for layer in range(LAYERS):
        front = f"model.layers.{layer}."
        shapes |= {f"{front}self_attn.{part}_proj.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{front}mlp.{part}_proj.weight": (INNER, WIDTH) for part in ("gate", "up")}
        shapes[f"{front}mlp.down_proj.weight"] = (WIDTH, INNER)
    state = {name: torch.randn(shape, generator=generator).mul_(0.02).bfloat16() for name, shape in shapes.items()}
    ws.save_checkpoint(state, folder)
    write_beside(folder, tokens)


def write_beside(folder: Path, tokens: Sequence[str]) -> None:
    """Write configuration and tokenizer; there are as many merges as tokens, as in vocabularies of that size."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": TOKENS, "hidden_size": WIDTH}
    (folder / "config.json").write_text(json.dumps(config))
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [[token[:-1], token[-1]] for token in tokens]
    content: dict[str, Any] = {"version": "1.0", "added_tokens": [], "decoder": {"type": "ByteLevel"}}
    content["model"] = {"type": "BPE", "vocab": vocab, "merges": merges}
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
