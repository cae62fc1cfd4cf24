"""Tensors of stacked slices: those before the layers, the renumbered layers, those after them.

Tensors before the layers belong to the first slice, and so do the towers that feed the stack that is cut (a vision
tower in front of a language model); tensors after the layers belong to the last slice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from weightspace.errors import CheckpointError
from weightspace.lora.tied_weights import is_head
from weightspace.merging.plan.plan import Ref
from weightspace.merging.plan.tensor_finder import Output, TensorFinder
from weightspace.merging.slices.boundaries import Boundaries
from weightspace.merging.slices.layer_shapes import check_layers
from weightspace.merging.slices.layer_values import LayerValues, check_configurations
from weightspace.merging.slices.stacking import Stacking, plan_stacking

#: Tensors outside the layers with an entry, or a row of entries, for each layer.
_ENTRIES = re.compile(
    r"(.*\.)?(contact_head\.regression\.(weight|bias)|layer_weights|scalar_mix\.\S+|\w*_lambdas"
    r"|embed_tokens_per_layer\.weight|per_layer_model_projection\.weight)"
)


def stack_slices(finder: TensorFinder, donor: str) -> tuple[list[Output], Stacking]:
    """Stack a recipe's slices; return the tensors in the order of the output, and the stacking.

    Args:
        finder: finds the tensors of the recipe's models.
        donor: the model that the configuration comes from.

    Raises:
        CheckpointError: models lack tensors or layers, or layers do not fit together.
        WeightspaceError: the choice of the stack is ambiguous, or sources have different numbers of layers.
    """
    stacking = plan_stacking(finder.recipe, finder.members, donor)
    check_configurations(stacking)
    extra = check_layers(stacking, LayerValues(stacking), finder.warn)
    slicer = _Slicer(finder, stacking, extra)
    before, after = slicer.outside()
    outputs = [*before, *slicer.inside(), *after]
    slicer.check_outside([*before, *after])
    return outputs, stacking


class _Slicer:
    """Sources and names of the tensors of stacked slices."""

    def __init__(self, finder: TensorFinder, stacking: Stacking, extra: Mapping[int, frozenset[str]]) -> None:
        """Store the inputs; ``extra`` are the tensors of first layers that go before all layers, by model."""
        self.finder = finder
        self.stacking = stacking
        self.extra = extra
        self.parts = [finder.sources(part) for part in finder.recipe.slices]
        self.outer = list(dict.fromkeys([*self.parts[0], *self.parts[-1]]))

    def outside(self) -> tuple[list[Output], list[Output]]:
        """Return the tensors before the layers and those after them."""
        sides: dict[str, bool] = {}
        for number in self.outer:
            model = self.stacking.models[number]
            early = model.part.get("do_stable_layer_norm") is False
            boundaries = Boundaries(model.stack, model.member.contents.tensors, model.inside, early_norm=early)
            for name in model.member.contents.tensors:
                if name not in model.inside and name not in sides:
                    sides[name] = boundaries.is_before(name)
        last = len(self.parts) - 1
        before = [self._outside(name, 0, "before") for name, early in sides.items() if early]
        after = [self._outside(name, last, "after") for name, early in sides.items() if not early]
        return before, [*after, *self._heads(sides), *self._further()]

    def inside(self) -> Iterator[Output]:
        """Yield the tensors of the layers."""
        for place, sources in enumerate(self.stacking.layers):
            part, position = self.stacking.slices[place]
            templates = dict.fromkeys(
                template
                for number, layer in sources
                for template in self.stacking.models[number].by_layer[layer]
                if template not in self.extra[number]
            )
            for template in templates:
                yield self._layer(template, part, position, sources, place)
            if place == 0:
                for template in dict.fromkeys(name for number, _ in sources for name in sorted(self.extra[number])):
                    yield self._layer(template, part, position, [(number, 0) for number, _ in sources], 0)

    def check_outside(self, outputs: Sequence[Output]) -> None:
        """Check that the tensors outside the layers match those of the configuration's donor.

        Raises:
            CheckpointError: a shape differs, a tensor is missing, or one has an entry for each layer.
        """
        donor = self.finder.members[self.stacking.donor]
        for output in outputs:
            if self.stacking.moves and _ENTRIES.fullmatch(output.name):
                raise CheckpointError(
                    f"{output.name!r} has an entry for each layer, and these slices move layers. Expected slices that "
                    "keep each layer in its position; merge the models whole."
                )
            number, name = output.inputs[0]
            shape, expected = self._shape((number, name)), self._shape((self.stacking.donor, output.name))
            if expected is not None and shape != expected:
                vocabulary = shape is not None and len(shape) == 2 and shape[1:] == expected[1:]
                hint = " Are the vocabularies different?" if vocabulary else ""
                label = self.finder.members[number].label
                raise CheckpointError(
                    f"{output.name!r} is {shape} in {label} and {expected} in {donor.label}. Slices of both form one "
                    f"network: expected the same shape.{hint}"
                )
        known = {*self.stacking.models[self.stacking.donor].inside, *(output.name for output in outputs)}
        lost = [name for name in donor.contents.tensors if name not in known and not is_head(name)]
        if lost and self.stacking.donor not in self.outer:
            line = f"{donor.label}, which config.json comes from, has {lost[0]!r}; the first and last slices do not."
            if self.finder.warn is None:
                raise CheckpointError(f"{line} Expected models of one architecture.")
            self.finder.warn(line)

    def _layer(
        self, template: str, part: int, position: float, sources: Sequence[tuple[int, int]], place: int
    ) -> Output:
        """Return a tensor of one layer of the output."""
        models = self.stacking.models
        refs: list[Ref] = [(number, models[number].layers.renumbered(template, layer)) for number, layer in sources]
        name = models[sources[0][0]].layers.renumbered(template, place)
        return self.finder.output(name, part, position, refs, refs[0][1])

    def _outside(self, name: str, part: int, side: str) -> Output:
        """Return a tensor outside the layers, from the models of a slice."""
        sources = self.parts[part]
        owners = ((number, shape) for number in self.outer if (shape := self._shape((number, name))) is not None)
        other, shape = next(owners)
        if not any(self.finder.has((number, name), shape) for number in sources):
            lacking = self.finder.members[sources[0]].label
            has = self.finder.members[other].label
            line = f"{lacking} has no tensor {name!r}, which {has} has {side} the layers."
            if self.finder.warn is None:
                raise CheckpointError(f"{line} Expected it in the {'first' if part == 0 else 'last'} slice's model.")
            self.finder.warn(f"{line} It is copied from {has}.")
            return Output(name, part, 0.0, ((other, name),), None, copied=True)
        position = self.stacking.models[sources[0]].layers.position(name)
        refs = [(number, name) for number in sources]
        own = any(self._shape(ref) is not None for ref in refs)
        return self.finder.output(name, part, position, refs, name, shape=None if own else shape)

    def _heads(self, known: Collection[str]) -> Iterator[Output]:
        """Yield the heads that only the base or the donor of the configuration has, since the models tie theirs."""
        last = len(self.parts) - 1
        for number in {self.finder.bases[last], self.stacking.donor} - {None, *self.outer}:
            for name, info in self.finder.members[number].contents.tensors.items():
                refs = [(source, name) for source in self.parts[last]]
                if is_head(name) and name not in known and all(self.finder.has(ref, info.shape) for ref in refs):
                    yield self.finder.output(name, last, 0.0, refs, name, shape=info.shape)

    def _further(self) -> Iterator[Output]:
        """Yield the multi-token prediction layers, which follow the last layer whatever its number."""
        sources = self.parts[-1]
        model = self.stacking.models[sources[0]]
        for layer, names in enumerate(model.by_layer[model.count :]):
            for name in names.values():
                renumbered = model.layers.renumbered(name, len(self.stacking.layers) + layer)
                refs = [(number, name) for number in sources]
                yield self.finder.output(renumbered, len(self.parts) - 1, 0.0, refs, name)

    def _shape(self, ref: Ref) -> tuple[int, ...] | None:
        info = self.finder.members[ref[0]].contents.tensors.get(ref[1])
        return None if info is None else info.shape
