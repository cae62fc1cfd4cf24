"""Plan of a quantised output: the matrices that are written as FP8, and the tensors of their scales.

Only weights of linear layers and experts are quantised, never embeddings, heads or routers. If any model is itself
quantised, only the matrices that are quantised in a model are quantised, otherwise all. Fused experts are written as
the matrices that they consist of.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.file_format import DCP_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.json_file import json_document
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.quantised.fp8 import BLOCK
from weightspace.errors import WeightspaceError
from weightspace.merging.config.quantisation import described
from weightspace.merging.config.sections import read_configuration
from weightspace.merging.plan.fused_experts import expert_matrices, is_fused
from weightspace.merging.plan.options import OutputOptions
from weightspace.merging.plan.plan import Job, Member, Scales
from weightspace.merging.recipe.types import GGUF_SCHEMES, Quantise

#: Dtypes that are quantised, and the kinds of jobs.
_DTYPES, _KINDS = ("F64", "F32", "BF16", "F16"), ("merge", "copy")

#: Words in names of modules that are no linear layers of a block, or whose quantisation costs more than it saves.
_OTHERS = frozenset(
    {
        *("embed", "embedding", "embeddings", "embedder", "wte", "wpe", "shared", "head", "score", "classifier"),
        *("router", "pooler", "projector", "norm", "layernorm", "conv", "convs", "rotary", "position", "bias"),
    }
)
_OTHER_MODULES = frozenset(
    {
        "output",
        "gate",
        "lm_head",
        "embed_tokens",
        "shared_expert_gate",
        "x_embedder",
        "patch_embed",
        "c_attn",
        "c_fc",
        "c_proj",
    }
)


def with_quantisation(
    jobs: Sequence[Job],
    tied: Mapping[str, str],
    members: Sequence[Member],
    quantise: Quantise | None,
    options: OutputOptions,
    out: Path,
    donor: Path | None,
    note: Callable[[str], None],
) -> list[Job]:
    """Return the jobs, in which the matrices to quantise have FP8 as their dtype and the tensors of their scales.

    Args:
        jobs: the tensors of the output.
        tied: name -> name of the tensor that it shares memory with; neither is quantised.
        members: the checkpoints of the merge.
        quantise: the scheme and its exceptions; None if nothing is quantised.
        options: options of the output.
        out: the output.
        donor: the folder that the configuration comes from, or None.
        note: called with a line on what is quantised.

    Raises:
        WeightspaceError: there is nothing to quantise, or the output cannot be quantised.
    """
    if quantise is None:
        _report_plain(jobs, members, note)
        return list(jobs)
    if options.allow_nonfinite:
        raise WeightspaceError(
            "quantise needs finite values: FP8 numbers have no infinity. Leave --allow-nonfinite out."
        )
    if out.suffix.lower() in (*TORCH_SUFFIXES, DCP_SUFFIX):
        raise WeightspaceError(
            f"{out}: quantised weights are written as safetensors; expected a folder or a .safetensors file."
        )
    if quantise.scheme in GGUF_SCHEMES:
        raise WeightspaceError(
            f"{out}: {quantise.scheme} is written in GGUF files; expected an output named FILE.gguf."
        )
    config = None if donor is None else read_configuration(donor)
    chosen = {
        job.name: _matrices(job, config or {}) for job in _chosen(jobs, {*tied, *tied.values()}, members, quantise)
    }
    quantised = [_quantised(job, chosen.get(job.name, ()), quantise.scheme) for job in jobs]
    fitting = {job.name for job in quantised if job.scales is not None}
    if not fitting and quantise.inherited:
        _report_plain(jobs, members, note)
        return list(jobs)
    if not fitting:
        blocks = f", with sides that are multiples of {BLOCK}" if chosen else ""
        raise WeightspaceError(
            f"quantise ({quantise.scheme}) finds no matrix to quantise: expected weights of linear layers, called "
            f"MODULE.weight{blocks}. Leave it out."
        )
    _check_names(quantised)
    _report(quantised, chosen, quantise, note)
    _report_unconfigured(out.suffix.lower() == ".safetensors", config is not None, note)
    return quantised


def _check_names(jobs: Sequence[Job]) -> None:
    """Check that the tensors that quantised ones are written as have other names than the rest.

    Raises:
        WeightspaceError: two have the same name.
    """
    counts = Counter(name for job in jobs for name in job.written)
    for job in jobs:
        if taken := next((name for name in job.written if job.scales is not None and counts[name] > 1), None):
            raise WeightspaceError(f"{job.name!r} cannot be quantised: the models have a tensor {taken!r}.")


def _report_plain(jobs: Sequence[Job], members: Sequence[Member], note: Callable[[str], None]) -> None:
    """Report that the output of a merge of quantised models is not quantised, and its dtypes."""
    if any(member.contents.is_quantised() for member in members):
        dtypes = dict.fromkeys(job.info.dtype for job in jobs if job.info.is_inexact)
        note(f"The output is not quantised: its weights are plain {' and '.join(dtypes)}.")


def _report(
    jobs: Sequence[Job], chosen: Mapping[str, Sequence[str]], quantise: Quantise, note: Callable[[str], None]
) -> None:
    """Report which matrices are quantised.

    Args:
        jobs: the tensors of the output, as they are written.
        chosen: name of a tensor that is to be quantised -> names of its matrices; none if these aren't known.
        quantise: the scheme.
        note: called with the lines.
    """
    plain = {job.name: job.info.dtype for job in jobs if job.scales is None and job.info.is_inexact}
    count = sum(len(job.scales.matrices) for job in jobs if job.scales is not None)
    rest = ", ".join(f"{count:,} in {dtype}" for dtype, count in Counter(plain.values()).items())
    origin = ", as in the models (for plain weights, name a dtype)" if quantise.inherited else ""
    note(
        f"{count:,} matrices are written as FP8 numbers ({quantise.scheme}), which have 4 significant bits"
        f"{origin}; the other tensors are not quantised: {rest or 'none'}."
    )
    if divided := [name for name, own in chosen.items() if len(own) > 1 and name not in plain]:
        note(f"Fused experts are written as a matrix per expert and projection, as FP8 is read: {_few(divided)}.")
    if unmatched := [part for part in quantise.ignore if not any(part in job.name for job in jobs)]:
        note(f"quantise.ignore: no tensor has {' or '.join(map(repr, unmatched))} in its name.")
    if left := [name for name, own in chosen.items() if own and name in plain]:
        note(f"Not quantised, since their sides are not multiples of {BLOCK}: {_few(left)}.")
    if left := [name for name, own in chosen.items() if not own]:
        note(f"Not quantised, since it is not known how these experts are fused: {_few(left)}.")


def _report_unconfigured(is_file: bool, is_configured: bool, note: Callable[[str], None]) -> None:
    """Report that an output without a configuration does not say how it is quantised."""
    if is_file or not is_configured:
        needed = "" if is_configured else ", and name a model with a config.json first, or as the base"
        note(
            "No quantization_config is written, without which transformers and vLLM do not load FP8 weights: the "
            f"output {'is a single file' if is_file else 'has no config.json'}. Write a folder{needed}."
        )


def _few(names: Sequence[str]) -> str:
    """Return some names and the number of the others."""
    return f"{', '.join(names[:3])}{f', and {len(names) - 3:,} more' if len(names) > 3 else ''}"


def with_settings(
    donor: Path,
    configurations: Mapping[str, str],
    jobs: Sequence[Job],
    tied: Mapping[str, str],
    quantise: Quantise | None,
) -> dict[str, str]:
    """Return the changed configuration files of the output, with the quantisation entry added.

    Args:
        donor: the folder that the configuration comes from.
        configurations: the other changes, new text by file name.
        jobs: the tensors of the output.
        tied: name -> name of the tensor that it shares memory with.
        quantise: the scheme, or None.
    """
    is_quantised = any(job.scales is not None for job in jobs)
    config = read_configuration(donor) if is_quantised else None
    if config is None or quantise is None:
        return dict(configurations)
    if "config.json" in configurations:
        config = json.loads(configurations["config.json"])
    config["quantization_config"] = described(quantise.scheme, _unquantised_modules(jobs, tied))
    return {**configurations, "config.json": json_document(config)}


def _unquantised_modules(jobs: Sequence[Job], tied: Mapping[str, str]) -> list[str]:
    """Return the modules whose matrices are not quantised; with an expert, the module of all experts of its layer."""
    plain = [job.name for job in jobs if job.scales is None and len(job.info.shape) > 1]
    modules = {name.rpartition(".")[0] for name in (*plain, *tied) if "." in name} | {"lm_head"}
    experts = {found.group() for module in modules if (found := re.match(r".*\bexperts(?=\.\d+\.)", module))}
    return sorted(modules | experts)


def _chosen(jobs: Sequence[Job], tied: Collection[str], members: Sequence[Member], quantise: Quantise) -> list[Job]:
    """Return the jobs of the matrices to quantise, and of fused experts."""
    possible = [
        job
        for job in jobs
        if job.kind in _KINDS and job.info.dtype in _DTYPES and job.info.numel and job.name not in tied
        if is_fused(job.name, job.info.shape) or (len(job.info.shape) == 2 and _is_linear(job.name))
        if not any(part in job.name for part in quantise.ignore)
    ]
    if any(member.contents.is_quantised() for member in members):
        return [job for job in possible if any(_is_quantised(members[index], name) for index, name in job.models)]
    return possible


def _is_quantised(member: Member, name: str) -> bool:
    """Return whether a model's tensor is quantised, or any that an intermediate result is computed from."""
    if member.plan is not None:
        made = member.plan.made(member.contents.renamed.get(name, name))
        return any(_is_quantised(member.plan.members[index], below) for index, below in made.models)
    return member.contents.is_quantised(name)


def _is_linear(name: str) -> bool:
    """Return whether a matrix is probably the weight of a linear layer inside a block, by its name."""
    *_, module, last = ("", *name.split("."))
    words = set(re.split(r"[^a-z]+", module.lower()))
    inside = any(part.isdigit() for part in name.split("."))
    return last == "weight" and inside and module not in _OTHER_MODULES and words.isdisjoint(_OTHERS)


def _matrices(job: Job, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the matrices that a tensor is written as; none if it is unknown how experts are fused."""
    if is_fused(job.name, job.info.shape):
        return expert_matrices(job.name, job.info.shape, config)
    return (job.name,)


def _quantised(job: Job, matrices: tuple[str, ...], scheme: str) -> Job:
    """Return the job of a tensor that is written as these quantised matrices, if there are some and they fit.

    For blocks, sides must be multiples of theirs, as transformers derives their size from the number of scales.
    """
    count, columns = len(matrices), job.info.shape[-1] if job.info.shape else 1
    rows = job.info.numel // max(1, count * columns)
    if not count or (scheme == "fp8-block" and any(size > BLOCK and size % BLOCK for size in (rows, columns))):
        return job
    if scheme == "fp8-block":
        block = min(rows, BLOCK), min(columns, BLOCK)
        ending, shape = "_scale_inv", (count * rows // block[0], columns // block[1])
    elif scheme == "fp8-channel":
        block, ending, shape = (1, columns), "_scale", (count * rows, 1)
    else:
        block, ending, shape = (rows, columns), "_scale", (count,)
    scales = Scales(job.name + ending, TensorInfo("F32", shape), block, matrices)
    return replace(job, info=TensorInfo("F8_E4M3", job.info.shape), scales=scales)
