"""Plan of a quantised output: the matrices that are written as FP8, and the tensors of their scales.

Only weights of linear layers are quantised, never embeddings, heads or routers. If any model is itself quantised, only
the matrices that are quantised in a model are quantised, otherwise all.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoints.file_format import DCP_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.quantised.fp8 import BLOCK
from weightspace.errors import WeightspaceError
from weightspace.merging.config.quantisation import described
from weightspace.merging.config.sections import read_configuration
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
    chosen = _chosen(jobs, {*tied, *tied.values()}, members, quantise)
    fitting = {job.name for job in chosen if quantise.scheme != "fp8-block" or _has_blocks(job)}
    if not fitting and quantise.inherited:
        _report_plain(jobs, members, note)
        return list(jobs)
    if not fitting:
        blocks = f", with sides that are multiples of {BLOCK}" if chosen else ""
        raise WeightspaceError(
            f"quantise ({quantise.scheme}) finds no matrix to quantise: expected weights of linear layers, called "
            f"MODULE.weight{blocks}. Leave it out."
        )
    taken = {job.name for job in jobs}
    quantised = [_quantised(job, quantise.scheme) if job.name in fitting else job for job in jobs]
    for job in quantised:
        if job.scales is not None and job.scales.name in taken:
            raise WeightspaceError(f"{job.name!r} cannot be quantised: the models have a tensor {job.scales.name!r}.")
    _report(jobs, chosen, fitting, quantise, note)
    return quantised


def _report_plain(jobs: Sequence[Job], members: Sequence[Member], note: Callable[[str], None]) -> None:
    """Report that the output of a merge of quantised models is not quantised, and its dtypes."""
    if any(member.contents.is_quantised() for member in members):
        dtypes = dict.fromkeys(job.info.dtype for job in jobs if job.info.is_inexact)
        note(f"The output is not quantised: its weights are plain {' and '.join(dtypes)}.")


def _report(
    jobs: Sequence[Job],
    chosen: Sequence[Job],
    fitting: Collection[str],
    quantise: Quantise,
    note: Callable[[str], None],
) -> None:
    """Report which matrices are quantised."""
    others = Counter(job.info.dtype for job in jobs if job.name not in fitting and job.info.is_inexact)
    rest = ", ".join(f"{count:,} in {dtype}" for dtype, count in others.items())
    origin = ", as in the models (for plain weights, name a dtype)" if quantise.inherited else ""
    note(
        f"{len(fitting):,} matrices are written as FP8 numbers ({quantise.scheme}), which have 4 significant bits"
        f"{origin}; the other tensors are not quantised: {rest or 'none'}."
    )
    if unmatched := [part for part in quantise.ignore if not any(part in job.name for job in jobs)]:
        note(f"quantise.ignore: no tensor has {' or '.join(map(repr, unmatched))} in its name.")
    if left := [job.name for job in chosen if job.name not in fitting]:
        note(
            f"Not quantised, since their sides are not multiples of {BLOCK}: {', '.join(left[:3])}"
            f"{f', and {len(left) - 3:,} more' if len(left) > 3 else ''}."
        )


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
    return {**configurations, "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n"}


def _unquantised_modules(jobs: Sequence[Job], tied: Mapping[str, str]) -> list[str]:
    """Return the modules whose matrices are not quantised."""
    plain = [job.name for job in jobs if job.scales is None and len(job.info.shape) > 1]
    return sorted({name.rpartition(".")[0] for name in (*plain, *tied) if "." in name} | {"lm_head"})


def _chosen(jobs: Sequence[Job], tied: Collection[str], members: Sequence[Member], quantise: Quantise) -> list[Job]:
    """Return the jobs of the matrices to quantise."""
    possible = [
        job
        for job in jobs
        if job.kind in _KINDS and job.info.dtype in _DTYPES and len(job.info.shape) == 2 and job.info.numel
        if job.name.endswith(".weight") and job.name not in tied and _is_linear(job.name)
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
    *_, module, _ = ("", *name.split("."))
    words = set(re.split(r"[^a-z]+", module.lower()))
    return (
        module not in _OTHER_MODULES and words.isdisjoint(_OTHERS) and any(part.isdigit() for part in name.split("."))
    )


def _has_blocks(job: Job) -> bool:
    """Return whether the blocks of a matrix are whole, as transformers derives their size from the number of scales."""
    return all(size <= BLOCK or size % BLOCK == 0 for size in job.info.shape)


def _quantised(job: Job, scheme: str) -> Job:
    """Return the job of a quantised matrix."""
    rows, columns = job.info.shape
    module = job.name.rpartition(".")[0]
    if scheme == "fp8-block":
        block = min(rows, BLOCK), min(columns, BLOCK)
        name, shape = f"{module}.weight_scale_inv", (rows // block[0], columns // block[1])
    elif scheme == "fp8-channel":
        block, name, shape = (1, columns), f"{module}.weight_scale", (rows, 1)
    else:
        block, name, shape = (rows, columns), f"{module}.weight_scale", (1,)
    scales = Scales(name, TensorInfo("F32", shape), block)
    return replace(job, info=TensorInfo("F8_E4M3", job.info.shape), scales=scales)
