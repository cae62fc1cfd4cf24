"""Plan a merge from a recipe and the headers of its checkpoints; mistakes visible there are errors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weightspace.checkpoints.buffers import holds_whole_numbers, is_counter, is_fixed
from weightspace.checkpoints.components import Component, in_folders
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.methods import Method
from weightspace.merging.out_of_core.chat_templates import chat_template
from weightspace.merging.out_of_core.component_checks import check_components, component_configurations
from weightspace.merging.out_of_core.gguf_models import check_gguf_models
from weightspace.merging.out_of_core.input_checks import (
    check_evidence,
    check_plain,
    check_something_in_common,
    compare_folders,
    report_unmerged_base,
)
from weightspace.merging.out_of_core.staging import weights_file
from weightspace.merging.out_of_core.template_tokens import template_warnings
from weightspace.merging.out_of_core.tensor_names import Output, Outputs, check_effects, check_mostly_common, outputs
from weightspace.merging.out_of_core.vocabularies import check_tokens
from weightspace.merging.plan.gguf_output import gguf_template, packed_jobs
from weightspace.merging.plan.inputs import companion_paths, stamps_of
from weightspace.merging.plan.layout import lay_out
from weightspace.merging.plan.listeners import STRICT, Listeners, WarningLog
from weightspace.merging.plan.members import open_members
from weightspace.merging.plan.metadata import plan_identity, plan_metadata, reading_of
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.options import OutputOptions, ReadingOptions
from weightspace.merging.plan.parametrized import with_parametrizations
from weightspace.merging.plan.plan import Job, Kind, Member, Plan, Ref
from weightspace.merging.plan.promotion import FLOATS, promoted
from weightspace.merging.plan.quantisation_scheme import output_quantisation
from weightspace.merging.plan.quantised_output import with_quantisation, with_settings
from weightspace.merging.recipe.merge_roles import find_method, split_base
from weightspace.merging.recipe.parameters import gives_base, is_mergekits
from weightspace.merging.recipe.parse import Recipe, Warn
from weightspace.merging.recipe.schedule import resolve
from weightspace.merging.recipe.types import Quantise
from weightspace.merging.slices.configuration import adapted_configurations
from weightspace.merging.slices.layer_index import Layers
from weightspace.merging.slices.notices import slice_notices
from weightspace.merging.tokenizers.configuration import vocabulary_configurations
from weightspace.merging.tokenizers.fallback_rows import with_fallbacks
from weightspace.merging.tokenizers.job_checks import check_moved_jobs
from weightspace.merging.tokenizers.planning import TokenizerSource, plan_vocabulary, with_moved_rows


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan in addition to the recipe.

    Attributes:
        output: options of the output.
        reading: options for reading the inputs.
        lenient: whether the recipe was read leniently; recorded in the metadata.
        further_rows: adds rows to the vocabulary for tokens that no checkpoint has.
        intermediate: whether the output is an intermediate result, which is never quantised.
    """

    output: OutputOptions = field(default_factory=OutputOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    lenient: bool = False
    further_rows: Callable[[MovedVocabulary, Sequence[Member]], MovedVocabulary] | None = None
    intermediate: bool = False


def make_plan(
    recipe: Recipe,
    out: Path,
    options: PlanOptions,
    listeners: Listeners = STRICT,
) -> Plan:
    """Plan a merge from headers.

    Args:
        recipe: the recipe.
        out: the output; its name decides whether it is a file or a folder.
        options: further options that determine the bytes.
        listeners: callbacks for messages.

    Raises:
        CheckpointError: a checkpoint is missing or damaged, or names, shapes or kinds of tensors do not fit together.
        WeightspaceError: the method, its parameters or the weights are invalid.
    """
    note, ignored = WarningLog(listeners.notice), listeners.ignored
    options = replace(options, reading=reading_of(recipe, options.reading))
    row = find_method(recipe.method)
    members = open_members(*_sources(recipe), options.reading, note, recipe.donor)
    check_plain(members)
    donor = _donor(recipe, members)
    check_components(recipe, members, donor, lenient=listeners.warn is not None)
    source = _tokenizer_source(recipe, members, donor, options, note, ignored)
    vocabulary = None if source is None else source.vocabulary
    members = members if vocabulary is None else with_moved_rows(members, vocabulary)
    named = _outputs(recipe, row, members, listeners.warn, partial=ignored is not None)
    check_effects(recipe, named, options.reading, ignored)
    _report_decisions(recipe, row, named, note)
    jobs = _jobs(recipe, row, members, named, vocabulary)
    _check_inputs(recipe, row, members, jobs, source, donor, note)
    components = _components(donor, members)
    is_plain = options.intermediate or in_folders(components)
    quantise = None if is_plain else output_quantisation(recipe, members, options.output, out)
    gguf = None if is_plain else gguf_template(recipe, members, out)
    if gguf is None:
        jobs = with_quantisation(jobs, named.tied, members, quantise, options.output, out, donor, note)
    else:
        jobs = packed_jobs(gguf, jobs, named.tied, quantise, options.output, note)
    tokenizer, file = None if source is None else source.folder, weights_file(out)
    compared = {"sliced": bool(named.stackings), "moved": vocabulary is not None, "copied": file is None}
    companions = compare_folders(members, donor, note, **compared)
    metadata = plan_metadata(recipe, members, options.output, options.reading, lenient=options.lenient)
    placed, shards = lay_out(jobs, named.tied, metadata, file, options.output.shard_size, gguf, components)
    further = [] if file or donor is None else companion_paths(donor, companions.copied, tokenizer)
    stamps = stamps_of(members, [*further, *(() if vocabulary is None else vocabulary.files)])
    identity = plan_identity(metadata, stamps, options.output, out)
    configurations = _configurations(named, members, placed, None if file else donor, vocabulary, quantise)
    template = chat_template(recipe, members, None if file else tokenizer or donor, ignored)
    _check_template(template, tokenizer or donor, donor, vocabulary, configurations, note)
    placement = (placed, named.tied, shards, metadata, not options.output.allow_nonfinite, identity, _title(out))
    files = (donor, tokenizer, configurations, companions.copied, tuple(note.lines), template, stamps)
    return Plan(row, members, *placement, *files, options.output.hashes, vocabulary, options.output.device)


def _check_inputs(
    recipe: Recipe,
    row: Method,
    members: Sequence[Member],
    jobs: Sequence[Job],
    source: TokenizerSource | None,
    donor: Path | None,
    note: Warn,
) -> None:
    """Check the evidence and the tokens of the models."""
    check_evidence(row, members, _models(recipe, members), jobs)
    _check_tokens(source, members, jobs, donor, note)


def _report_decisions(recipe: Recipe, row: Method, named: Outputs, note: Warn) -> None:
    """Report decisions on slices of layers, and a base that is not merged."""
    for stacking in named.stackings:
        for line in slice_notices(stacking):
            note(line)
    report_unmerged_base(recipe, row, note)


def _outputs(recipe: Recipe, row: Method, members: Sequence[Member], warn: Warn | None, *, partial: bool) -> Outputs:
    """Return the tensors of the output, after checking that the models have tensors in common."""
    has_base = row.base != "none"
    if recipe.slices[0].sources[0].layer_range is None:
        whole = _models(recipe, members)
        base = [member for member in members if has_base and member.source in recipe.bases]
        check_something_in_common([*whole, *(member for member in base if member not in whole)])
    partial = partial and recipe.is_document and is_mergekits(row.name)
    found = outputs(recipe, members, base=has_base, warn=warn, partial=partial)
    check_mostly_common(found, len(found.outputs))
    return found


def _tokenizer_source(
    recipe: Recipe,
    members: Sequence[Member],
    donor: Path | None,
    options: PlanOptions,
    note: Warn,
    ignored: Warn | None,
) -> TokenizerSource | None:
    """Return the source of the output's tokenizer and how rows are reordered; None if the recipe names none."""
    source = plan_vocabulary(recipe, members, donor, options.reading, note, ignored)
    if source is None or source.vocabulary is None or options.further_rows is None:
        return source
    return replace(source, vocabulary=options.further_rows(source.vocabulary, members))


def _check_tokens(
    source: TokenizerSource | None, members: Sequence[Member], jobs: Sequence[Job], donor: Path | None, note: Warn
) -> None:
    """Check that rows can be reordered by token, or, if the recipe names no tokenizer, that the models share tokens."""
    if source is None:
        check_tokens(members, donor, note)
        check_gguf_models(members, note)
    elif source.vocabulary is not None:
        check_moved_jobs(source.vocabulary, members, jobs, note)


def _configurations(
    named: Outputs,
    members: Sequence[Member],
    jobs: Sequence[Job],
    donor: Path | None,
    vocabulary: MovedVocabulary | None,
    quantise: Quantise | None,
) -> dict[str, str]:
    """Return the donor's configuration files whose text changes in the output."""
    if donor is None:
        return {}
    untied = named.untied or any(member.untied for member in members)
    adapted = adapted_configurations(donor, jobs, untied=untied, stackings=named.stackings)
    adapted = adapted if vocabulary is None else vocabulary_configurations(donor, adapted, vocabulary, members)
    own = component_configurations(donor, _components(donor, members), jobs)
    return {**with_settings(donor, adapted, jobs, named.tied, quantise), **own}


def _check_template(
    template: str | None,
    tokenizer: Path | None,
    donor: Path | None,
    vocabulary: MovedVocabulary | None,
    configurations: Mapping[str, str],
    note: Warn,
) -> None:
    """Report a chat template that does not fit the output's tokenizer."""
    if template is not None and tokenizer is not None:
        for line in template_warnings(template, tokenizer, donor, vocabulary, configurations):
            note(line)


def _models(recipe: Recipe, members: Sequence[Member]) -> list[Member]:
    """Return the models of a recipe; includes the base only if it is listed as a model."""
    sources = {source.model for part in recipe.slices for source in part.sources}
    return [member for member in members if member.source in sources]


def _jobs(
    recipe: Recipe, row: Method, members: Sequence[Member], named: Outputs, vocabulary: MovedVocabulary | None
) -> list[Job]:
    """Return the jobs of the output's tensors, without their offsets in files."""
    planner = _Planner(recipe, row, members)
    jobs = [planner.job(tensor) for tensor in named.outputs]
    if vocabulary is not None:
        jobs = with_fallbacks(jobs, [recipe.bases[tensor.slice] for tensor in named.outputs], vocabulary, members)
    return _with_layers(with_parametrizations(jobs, named.tied, members))


def _with_layers(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with the layer that each tensor belongs to in the output."""
    layers = Layers(job.name for job in jobs)
    return [replace(job, layer=layers.depth(job.name)) for job in jobs]


class _Planner:
    """Builds a recipe's jobs; arguments that many tensors share are checked only once."""

    def __init__(self, recipe: Recipe, row: Method, members: Sequence[Member]) -> None:
        self.recipe = recipe
        self.row = row
        self.members = members
        self.checked: dict[str, dict[str, Any]] = {}
        self.weighed: set[str] = set()

    def job(self, output: Output) -> Job:
        """Return the job of an output tensor, without its offset in a file."""
        refs, base = output.inputs, output.base
        if output.copied:
            return self._job("copy", output, refs[:1], None, [1.0], {})
        infos = [self._info(ref) for ref in refs]
        self._check_fit(output, [*refs, *([] if base is None else [base])])
        floats, counts = all(info.is_inexact for info in infos), is_counter(output.name, infos[0].shape)
        if not floats or is_fixed(output.name):
            endpoint = [base] if self.row.base == "end" and base is not None and base not in refs else []
            kind = "largest" if counts else "agree"
            return self._job(kind, output, [*refs, *endpoint], None, [1.0] * len([*refs, *endpoint]), {})
        if base is not None and all(ref == base for ref in refs) and self.recipe.is_document and gives_base(self.row):
            return self._job("copy", output, [base], None, [1.0], {})
        weights, values = _only_present(output, *resolve(self.recipe, output.slice, output.name, output.position))
        origin = base if self.row.base != "none" else None
        listed = [index for index, ref in enumerate(refs) if ref == base]
        models, origin, factors = split_base(self.row, refs, origin, listed, weights)
        kept = [index for index, ref in enumerate(refs) if ref in models]
        kind = "largest" if counts and infos[0].numel == 1 else "merge"
        arguments = self._arguments(values, kept, len(refs))
        self._check_weights(output, factors, arguments)
        return self._job(kind, output, models, origin, factors, arguments)

    def _check_weights(self, output: Output, factors: Sequence[float], arguments: Mapping[str, Any]) -> None:
        """Check that a mean of the tensor is defined; each set of weights is checked once."""
        key = json.dumps([factors, arguments], sort_keys=True)
        if key in self.weighed:
            return
        try:
            self.row.check_weights(factors, arguments)
        except WeightspaceError as error:
            raise WeightspaceError(f"{output.name!r}: {str(error)[0].lower()}{str(error)[1:]}") from error
        self.weighed.add(key)

    def _arguments(self, values: Mapping[str, Any], kept: Sequence[int], sources: int) -> dict[str, Any]:
        """Return the method's arguments for these values, without those of sources that are the base."""
        own = {
            name: [value[index] for index in kept] if isinstance(value, list) and len(value) == sources else value
            for name, value in values.items()
        }
        key = json.dumps([len(kept), own], sort_keys=True)
        if key not in self.checked:
            self.checked[key] = self.row.arguments(own, len(kept))
        return self.checked[key]

    def _job(
        self,
        kind: Kind,
        output: Output,
        inputs: Sequence[Ref],
        base: Ref | None,
        weights: Sequence[float],
        arguments: Mapping[str, Any],
    ) -> Job:
        infos = [self._info(ref) for ref in inputs]
        integers = [info.dtype for info in infos if not info.is_inexact]
        dtype = promoted(output.name, integers or [self._dtype(ref) for ref in inputs])
        asked = self.recipe.out_dtype or self.recipe.dtype
        kept = is_fixed(output.name) or (is_counter(output.name, infos[0].shape) and infos[0].numel == 1)
        if not integers and not kept and dtype != "C64" and asked is not None:
            dtype = FLOATS[asked]
        info = TensorInfo(dtype, infos[0].shape)
        return Job(output.name, kind, tuple(inputs), base, tuple(weights), arguments, info)

    def _dtype(self, ref: Ref) -> str:
        """Return the dtype to use for a source in promotion."""
        member, name = ref
        return self.members[member].dtypes.get(name, self._info(ref).dtype)

    def _info(self, ref: Ref) -> TensorInfo:
        member, name = ref
        return self.members[member].contents.tensors[name]

    def _check_fit(self, output: Output, refs: Sequence[Ref]) -> None:
        """Check that the sources of a tensor have the same shape, and are all floats or all integers."""
        first, infos = self._info(refs[0]), [self._info(ref) for ref in refs]
        for ref, info in zip(refs, infos, strict=True):
            other_kind = info.is_inexact != first.is_inexact and not holds_whole_numbers(output.name, first.shape)
            if info.shape != first.shape or other_kind:
                here, there = self.members[refs[0][0]], self.members[ref[0]]
                vocabulary = len(info.shape) == 2 and info.shape[1:] == first.shape[1:]
                is_vocabulary = vocabulary and any(word in output.name for word in ("embed", "head", "wte", "output."))
                hint = " Do the vocabularies differ? `tokenizer: {source: union}` in a recipe merges them by token."
                found, other, wanted = first.shape, info.shape, "one shape"
                if other_kind:
                    found, other, wanted = (
                        f"{first.dtype} {found}",
                        f"{info.dtype} {other}",
                        "floats in both, or integers",
                    )
                raise CheckpointError(
                    f"{output.name!r} is {found} in {here.title} and {other} in {there.title}; expected {wanted}."
                    f"{hint if is_vocabulary else ''}"
                )


def _only_present(
    output: Output, weights: Sequence[float] | None, values: Mapping[str, Any]
) -> tuple[Sequence[float] | None, Mapping[str, Any]]:
    """Return weights and parameters of the sources that have the tensor."""
    present = output.present
    if present is None:
        return weights, values
    own = {key: [value[i] for i in present] if isinstance(value, list) else value for key, value in values.items()}
    return None if weights is None else [weights[index] for index in present], own


def _sources(recipe: Recipe) -> tuple[list[str], dict[str, str]]:
    """Return the checkpoints of a recipe without duplicates, and checkpoint -> evidence."""
    sources = [source for part in recipe.slices for source in part.sources]
    return list(recipe.models), {source.model: source.evidence for source in sources if source.evidence is not None}


def _donor(recipe: Recipe, members: Sequence[Member]) -> Path | None:
    """Return the folder that configuration and tokenizer come from: the base's, else the first model's, or None.

    A training checkpoint without config.json holds only training state beside the weights.
    """
    path = next(member.contents.path for member in members if member.source == recipe.donor)
    if not path.is_dir() or (find_training(path) is not None and not (path / "config.json").is_file()):
        return None
    return path


def _components(donor: Path | None, members: Sequence[Member]) -> tuple[Component, ...]:
    """Return the components of the folder that the output gets its other files from; empty without a folder."""
    return next((member.contents.components for member in members if member.contents.path == donor), ())


def _title(out: Path) -> str:
    return Path(os.path.realpath(out)).name
