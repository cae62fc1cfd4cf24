"""A model cut into slices: its stack of layers, and the configuration that describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weightspace.merging.config.sections import (
    Config,
    KeyPath,
    Side,
    count_keys,
    part_of,
    read_configuration,
    section_of,
    side_of,
    text_layers,
)
from weightspace.merging.plan.plan import Member
from weightspace.merging.slices.layer_index import Layers
from weightspace.merging.slices.layer_stacks import choose_stack

#: Keys that count multi-token prediction layers, which are stored after the others under the next numbers.
_FURTHER = ("num_nextn_predict_layers", "num_mtp_layers")


@dataclass(frozen=True)
class SlicedModel:
    """One model of a recipe with slices.

    Attributes:
        member: its checkpoint.
        layers: its stacks.
        stack: path of the stack that is cut.
        inside: tensor of the stack -> its layer.
        count: number of layers of the stack.
        further: number of multi-token prediction layers stored after them.
        config: its configuration, or None.
        section: path of the section that describes the stack.
        side: the stack's side of an encoder-decoder, or None.
    """

    member: Member
    layers: Layers
    stack: str
    inside: Mapping[str, int]
    count: int
    further: int
    config: Config | None
    section: KeyPath
    side: Side | None

    @property
    def part(self) -> Config:
        """Section of the configuration that describes the stack; empty without a configuration."""
        return {} if self.config is None else part_of(self.config, self.section)

    @cached_property
    def by_layer(self) -> list[dict[str, str]]:
        """Tensors of each layer: name in the first layer -> name."""
        names: list[dict[str, str]] = [{} for _ in range(self.count + self.further)]
        for name, layer in self.inside.items():
            names[layer][self.layers.renumbered(name, 0)] = name
        return names


def open_sliced(member: Member, *, stack: str | None, layer_range: tuple[int, int]) -> SlicedModel:
    """Open a model that is cut into slices.

    Args:
        member: the checkpoint.
        stack: the recipe's ``stack``, or None.
        layer_range: a range of the recipe, for the example in errors.

    Raises:
        CheckpointError: its configuration is damaged.
        WeightspaceError: there is no such stack, or the recipe does not choose one of several.
    """
    contents = member.contents
    layers = Layers(contents.tensors)
    config = read_configuration(contents.path) if contents.path.is_dir() else None
    in_text = None if config is None else text_layers(config)
    chosen = choose_stack(layers, member.label, asked=stack, text_layers=in_text, layer_range=layer_range)
    section: KeyPath = () if config is None else section_of(config, chosen)
    # The other side may be another module of the recipe, whose tensors are not among these.
    others = [*layers.stacks, "encoder", "decoder"] if config and config.get("is_encoder_decoder") else layers.stacks
    side = None if {"encoder", "decoder"} & set(section) else side_of(chosen, others, flat=not section)
    count = layers.stacks[chosen]
    further = _further({} if config is None else part_of(config, section), side, count)
    inside = layers.numbers(chosen)
    return SlicedModel(member, layers, chosen, inside, count - further, further, config, section, side)


def _further(part: Config, side: Side | None, count: int) -> int:
    """Return the number of multi-token prediction layers, which the configuration's number of layers excludes."""
    keys = count_keys(part, side)
    extra: list[Any] = [part[key] for key in _FURTHER if type(part.get(key)) is int]
    return next((number for number in extra if keys and number > 0 and part[keys[0]] == count - number), 0)
