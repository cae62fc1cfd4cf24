"""Every kind of file that the library reads: what makes a good one, what reads it, and what damages it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import documents
import makers
import readers
from header_mutations import HEADER, changed_array, changed_header, changed_metadata
from makers import beside
from mutations import BLIND, JSON, LINES, TABLE, ZIP, Mutation, changed_json, changed_yaml
from readers import Reader

from weightspace.checkpoints import load_metadata, summarise
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.connectivity import BarrierMatrix, Curve, Plane
from weightspace.labels import LabelMetric
from weightspace.labels.inputs import read_array, read_names, read_pairs
from weightspace.soups import SoupReport
from weightspace.symmetry import PermutationSpec, SymmetrySpec
from weightspace.zoo.idx import read_idx


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: writes a good one, and what belongs to it, into an empty folder; returns the file that is damaged.
        readers: are given the file.
        mutations: damage it.
        share: how often it comes.
        writes: the folder in which something may be written, beside the file.
    """

    make: Callable[[Path], Path]
    readers: Sequence[Reader]
    mutations: Sequence[Mutation]
    share: int
    writes: str = ""


#: Readers of a checkpoint, and of a spec.
CHECKPOINT: tuple[Reader, ...] = (
    *(readers.load, load_metadata, read_contents, summarise),
    readers.earlier_results,
)
SPEC: tuple[Reader, ...] = (PermutationSpec.load, readers.permuted)
_MERGED: tuple[Reader, ...] = (readers.in_place,)

KINDS_OF_FILES: dict[str, Kind] = {
    "safetensors": Kind(beside("x.safetensors", documents.checkpoint), CHECKPOINT, HEADER, 10),
    "GGUF": Kind(beside("x.gguf", documents.gguf_file), CHECKPOINT, BLIND, 7),
    "index": Kind(makers.index_file, (readers.folder, readers.in_place), JSON, 7),
    "torch": Kind(beside("x.pt", documents.checkpoint), CHECKPOINT, ZIP, 14),
    "old torch": Kind(beside("x.pt", documents.old_torch_file), CHECKPOINT, BLIND, 7),
    "recipe": Kind(
        makers.recipe_of(documents.RECIPE), (readers.recipe,), (*BLIND, changed_yaml, changed_yaml, changed_yaml), 9
    ),
    "recipe as JSON": Kind(makers.recipe_of(documents.RECIPE), (readers.recipe,), (changed_json,), 6),
    "slices": Kind(makers.recipe_of(documents.SLICES), (readers.recipe,), (changed_json, changed_yaml), 4),
    "spec": Kind(beside("spec.yaml", documents.spec_file), SPEC, (*BLIND, changed_yaml), 6),
    "spec as JSON": Kind(beside("spec.yaml", documents.spec_file), SPEC, (changed_json,), 6),
    "symmetry spec": Kind(
        beside("spec.yaml", documents.symmetries_file),
        (SymmetrySpec.load, readers.moved),
        (*BLIND, changed_yaml),
        4,
    ),
    "symmetry spec as JSON": Kind(
        beside("spec.yaml", documents.symmetries_file), (SymmetrySpec.load, readers.moved), (changed_json,), 4
    ),
    "element": Kind(beside("e.safetensors", documents.element_file), (readers.element,), HEADER, 3),
    "permutation": Kind(beside("p.safetensors", documents.permutation_file), (readers.permutation,), HEADER, 4),
    "config": Kind(makers.of_model("config.json"), _MERGED, JSON, 7),
    "tokenizer": Kind(makers.of_model("tokenizer.json"), _MERGED, JSON, 5),
    "tokenizer config": Kind(makers.of_model("tokenizer_config.json"), _MERGED, JSON, 3),
    "adapter config": Kind(
        makers.adapter_file("adapter_config.json"), (readers.adapter, readers.with_adapter), JSON, 7
    ),
    "adapter": Kind(makers.adapter_file("adapter_model.safetensors"), (readers.with_adapter,), HEADER, 4),
    "inspected": Kind(beside("x.safetensors", documents.checkpoint), (readers.inspect,), (changed_header,), 4),
    "arrays": Kind(beside("x.npz", documents.npz_file), (readers.scores,), ZIP, 7),
    "array": Kind(beside("x.npy", documents.npy_file), (read_array,), (*BLIND, changed_array), 5),
    "matrix": Kind(makers.text_file("x.csv", "0,1,2\n1,0,1\n2,1,0\n"), (read_array,), TABLE, 3),
    "names": Kind(makers.text_file("x.json", '["a", "b", 3]'), (read_names,), JSON, 2),
    "pairs": Kind(makers.text_file("x.csv", "a,b\nb,c,1.5\n"), (read_pairs,), TABLE, 3),
    "metric": Kind(beside("m.safetensors", documents.metric_file), (LabelMetric.load,), HEADER, 5),
    "curve": Kind(beside("c.json", documents.curve_file), (Curve.load,), JSON, 3),
    "curve as table": Kind(beside("c.csv", documents.curve_file), (Curve.load,), TABLE, 3),
    "images": Kind(beside("x.gz", documents.idx_file), (read_idx,), BLIND, 2),
    "metadata": Kind(makers.merged_file, (readers.reproduced,), (changed_metadata,), 4),
    "mirror": Kind(makers.mirror_record, (readers.mirrored,), JSON, 4, writes="cache/"),
    "added tokens": Kind(makers.of_models("added_tokens.json", b'{"<a>": 4, "<b>": 5}'), _MERGED, JSON, 3),
    "word pieces": Kind(makers.of_models("vocab.txt", b"[PAD]\nthe\n##s\n"), _MERGED, LINES, 2),
    "merges": Kind(makers.of_models("merges.txt", b"#version: 0.2\na b\nab c\n"), _MERGED, LINES, 2),
    "SentencePiece": Kind(makers.of_models("tokenizer.model", documents.sentencepiece()), _MERGED, BLIND, 4),
    "tiktoken": Kind(makers.of_models("qwen.tiktoken", b"YQ== 0\nYg== 1\nYWI= 2\n"), _MERGED, LINES, 3),
    "generation config": Kind(makers.of_model("generation_config.json"), _MERGED, JSON, 2),
    "torch adapter": Kind(makers.adapter_file("adapter_model.bin"), (readers.with_adapter,), ZIP, 4),
    "evidence": Kind(makers.evidence_file, (readers.fisher,), HEADER, 4),
    "barriers": Kind(beside("m.json", documents.barriers_file), (BarrierMatrix.load,), JSON, 3),
    "barriers as table": Kind(beside("m.csv", documents.barriers_file), (BarrierMatrix.load,), TABLE, 2),
    "plane": Kind(beside("p.json", documents.plane_file), (Plane.load,), JSON, 3),
    "soup report": Kind(beside("s.json", documents.soup_report_file), (SoupReport.load,), JSON, 3),
    "WordNet": Kind(makers.wordnet_file, (readers.wordnet,), BLIND, 2),
}
