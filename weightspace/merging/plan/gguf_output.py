"""Plan of a GGUF output: names, types and layouts of its tensors, and its header.

Fields and tokenizer are those of a GGUF file among the models, the template: the base if it is one, else the first. The
output has its tensors. Vectors are in float32, which llama.cpp expects.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightspace.checkpoints.file_format import GGUF_SUFFIX, file_format
from weightspace.checkpoints.gguf.block_types import BY_NAME, BlockType
from weightspace.checkpoints.gguf.header import Entry, Field, Header, encode_header, read_header
from weightspace.checkpoints.gguf.metadata import PREFIX, with_metadata
from weightspace.checkpoints.gguf.name_maps import COMPUTED, Names, layout_of, names_of
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.plan.options import OutputOptions
from weightspace.merging.plan.plan import Job, Member, Packed, Shard
from weightspace.merging.recipe.parse import Recipe
from weightspace.merging.recipe.types import GGUF_SCHEMES, Quantise

#: Types of matrices -> the number of general.file_type.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}

#: Fields on how an input was quantised, which are not true of the output.
_QUANTISING = "quantize."

#: Version of the quantised types, and most bytes of the computed tensors that are copied.
_VERSION, _MOST = 2, 2**20


def is_gguf(out: Path) -> bool:
    """Return whether an output of that name is a GGUF file."""
    return out.suffix.lower() == GGUF_SUFFIX


@dataclass(frozen=True)
class Template:
    """The GGUF file whose fields and tokenizer the output gets."""

    label: str
    path: Path
    header: Header
    names: Names

    def name(self, name: str) -> str | None:
        """Return the name in GGUF of a tensor of the merge, or None if it has none."""
        return name if self.names.family is None else self.names.family.gguf_name(name)


def gguf_template(recipe: Recipe, members: Sequence[Member], out: Path) -> Template | None:
    """Return the template of a GGUF output; None for other outputs.

    Raises:
        CheckpointError: no model is a GGUF file.
        WeightspaceError: the recipe changes the tokenizer or the chat template.
    """
    if not is_gguf(out):
        return None
    if recipe.tokenizer_source is not None or recipe.chat_template is not None:
        raise WeightspaceError(
            f"{out}: a GGUF output keeps tokenizer and chat template of one of the models. Leave `tokenizer` and "
            "`chat_template` out of the recipe, or write a folder and convert it (convert_hf_to_gguf.py of llama.cpp)."
        )
    ordered = sorted(members, key=lambda member: member.source != recipe.donor)
    for member in ordered:
        if (header := gguf_header(member)) is not None:
            return Template(member.title, member.contents.path, header, names_of(header))
    raise CheckpointError(
        f"{out} needs fields and tokenizer of a GGUF file, but no model is one. Name one of this architecture as base "
        "(--base, or base_model in a recipe), or write a folder and convert it (convert_hf_to_gguf.py of llama.cpp)."
    )


def gguf_header(member: Member) -> Header | None:
    """Return the header of a model that is a GGUF file, or None for other models."""
    path = member.contents.path
    is_file = member.plan is None and path.is_file() and file_format(path) == "gguf"
    return read_header(path) if is_file else None


def packed_jobs(
    template: Template,
    jobs: Sequence[Job],
    tied: Mapping[str, str],
    quantise: Quantise | None,
    options: OutputOptions,
    note: Callable[[str], None],
) -> list[Job]:
    """Return the jobs with their form in the output.

    Args:
        template: the template.
        jobs: the tensors of the output.
        tied: name -> name of the tensor that it shares memory with.
        quantise: the scheme and its exceptions; None if nothing is quantised.
        options: options of the output.
        note: called with a line on the types.

    Raises:
        CheckpointError: the tensors are not those of the template.
        WeightspaceError: the scheme is none of GGUF, or a dtype cannot be written.
    """
    if quantise is not None and quantise.scheme not in GGUF_SCHEMES:
        raise WeightspaceError(
            f"quantise: {quantise.scheme} cannot be written in a GGUF file; expected {', '.join(GGUF_SCHEMES)}."
        )
    if quantise is not None and options.allow_nonfinite:
        raise WeightspaceError(
            f"quantise: {quantise.scheme} needs finite values, as its numbers have no infinity. Leave "
            "--allow-nonfinite out."
        )
    packed = [_packed(template, job, quantise) for job in jobs]
    _check_complete(template, packed, tied)
    matrices = Counter(form.kind.name for form in _forms(packed))
    listed = ", ".join(f"{count:,} tensors in {name}" for name, count in matrices.items())
    loss = "" if "Q8_0" not in matrices else " Q8_0 numbers have 8 bits, and a scale for each 32."
    note(f"Fields and tokenizer of the GGUF output are those of {template.label}; it has {listed}.{loss}")
    return packed


def _packed(template: Template, job: Job, quantise: Quantise | None) -> Job:
    """Return a job with its form in the output."""
    name = template.name(job.name)
    entry = template.header.entries.get(name or "")
    if name is None or entry is None:
        raise CheckpointError(
            f"{job.name!r} has no place in the GGUF output: {template.label}, whose fields it gets, has no "
            f"{name or 'such tensor'!r}. Are the models of one architecture and depth?"
        )
    shape = template.header.shape(name)
    if shape != job.info.shape:
        raise CheckpointError(
            f"{job.name!r} is {job.info.shape}, but {template.label}, whose fields and tokenizer the GGUF output gets, "
            f"has {name!r} as {shape}. Expected one shape."
        )
    kind = _kind(template, job, name, quantise)
    layout = layout_of(template.path, template.header, template.names.family, name)
    nbytes = Entry(kind, entry.shape, 0).nbytes
    return replace(job, info=TensorInfo(kind.value_dtype, job.info.shape), packed=Packed(name, kind, layout, nbytes))


def _kind(template: Template, job: Job, name: str, quantise: Quantise | None) -> BlockType:
    """Return how a tensor is stored.

    Raises:
        WeightspaceError: its dtype cannot be written.
    """
    shape, dtype = job.info.shape, job.info.dtype
    if dtype not in BY_NAME or dtype == "F64":
        raise WeightspaceError(
            f"{job.name!r} would be {dtype}, which is not written in GGUF. Expected dtype float32, float16 or bfloat16."
        )
    if not job.info.is_inexact or len(shape) < 2:
        return BY_NAME["F32" if job.info.is_inexact else dtype]
    chosen = dtype
    if quantise is not None and not any(part in job.name for part in quantise.ignore):
        rows = template.header.entries[name].shape
        chosen = "Q8_0" if rows[-1] % BY_NAME["Q8_0"].elements == 0 else "F16"
    if template.names.family is None and chosen not in ("F32", template.header.entries[name].kind.name):
        raise WeightspaceError(
            f"{name!r} cannot be written in {chosen}: {template.label} is of a family that is not known "
            f"({template.names.reason}), and llama.cpp may need it in another type. Write float32 (--dtype float32), "
            "and quantise that with llama-quantize."
        )
    return BY_NAME[chosen]


def _check_complete(template: Template, jobs: Sequence[Job], tied: Mapping[str, str]) -> None:
    """Check that the output has all tensors of the template, and that no other name shares memory with them.

    Raises:
        CheckpointError: one is missing, or a tied name is not that of a head.
    """
    written = {form.name for form in _forms(jobs)}
    lacking = next((name for name in template.header.entries if name not in written and name not in COMPUTED), None)
    if lacking is not None:
        raise CheckpointError(
            f"The merge has no {lacking!r}, but {template.label}, whose fields the GGUF output gets, does. "
            "Are the models of one architecture and depth?"
        )
    for name, owner in tied.items():
        if name != "lm_head.weight":
            raise CheckpointError(f"{name!r} shares memory with {owner!r}, which is not written in GGUF.")


def _forms(jobs: Sequence[Job]) -> list[Packed]:
    """Return the forms of jobs in the output."""
    return [job.packed for job in jobs if job.packed is not None]


def lay_out_gguf(
    template: Template, jobs: Sequence[Job], metadata: Mapping[str, str], file: str
) -> tuple[tuple[Job, ...], tuple[Shard, ...]]:
    """Return the jobs with their offsets, and the only shard.

    The tensors have the order of the template, after those that are copied from it with the header.

    Args:
        template: the template.
        jobs: the tensors of the output.
        metadata: its provenance.
        file: its name.

    Raises:
        CheckpointError: the template is damaged.
    """
    old, alignment = template.header.entries, template.header.alignment
    forms = {form.name: form for form in _forms(jobs)}
    entries: dict[str, Entry] = {}
    end = 0
    for name in sorted(old, key=lambda name: name in forms):
        kind = forms[name].kind if name in forms else old[name].kind
        entries[name] = Entry(kind, old[name].shape, end)
        end += entries[name].nbytes + -entries[name].nbytes % alignment
    header = encode_header(_fields(template.header, jobs, metadata), entries)
    copied = b"".join(_copied(template, name, alignment) for name in entries if name not in forms)
    placed = [replace(job, offset=len(header) + entries[job.packed.name].start) for job in jobs if job.packed]
    return tuple(placed), (Shard(file, header + copied, len(header) + end),)


def _fields(header: Header, jobs: Sequence[Job], metadata: Mapping[str, str]) -> dict[str, Field]:
    """Return the fields of the output: those of the template that are true of it, and its provenance."""
    fields = {key: field for key, field in header.fields.items() if not key.startswith((PREFIX, _QUANTISING))}
    sizes: Counter[str] = Counter()
    for form in _forms(jobs):
        sizes[form.kind.name] += form.nbytes
    largest = max(sizes, key=lambda name: sizes[name], default="F32")
    if "general.file_type" in fields and largest in _FILE_TYPES:
        fields["general.file_type"] = Field.uint32(_FILE_TYPES[largest])
    if "Q8_0" in sizes:
        fields["general.quantization_version"] = Field.uint32(_VERSION)
    return with_metadata(fields, metadata)


def _copied(template: Template, name: str, alignment: int) -> bytes:
    """Return the bytes of a tensor of the template, padded.

    Raises:
        CheckpointError: it is too large to be one that the converters compute.
    """
    entry = template.header.entries[name]
    if entry.nbytes > _MOST:
        raise CheckpointError(f"{template.path}: {name!r} has {math.prod(entry.shape):,} elements. Is it damaged?")
    with open(template.path, "rb") as file:
        file.seek(template.header.data_start + entry.start)
        return file.read(entry.nbytes) + bytes(-entry.nbytes % alignment)
