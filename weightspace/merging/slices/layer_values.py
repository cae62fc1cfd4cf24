"""Per-layer values of configurations, read for each layer and rearranged for stacked slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.config.layer_lists import LayerRule, wrong_length
from weightspace.merging.config.layer_rules import layer_rules
from weightspace.merging.config.sections import Config
from weightspace.merging.slices.sliced_model import SlicedModel
from weightspace.merging.slices.stacking import Stacking

#: Model types in which some layers share tensors that are stored once.
_SHARING = ("zamba", "zamba2")


class LayerValues:
    """Per-layer values in the configurations of sliced models, by rule."""

    def __init__(self, stacking: Stacking) -> None:
        """Read the values.

        Args:
            stacking: the stacked slices.
        """
        self._stacking = stacking
        donor = stacking.models[stacking.donor]
        rules = {rule.key: rule for rule in _rules(donor)}
        self._values: dict[str, dict[int, list[Any] | None]] = {}
        for model in stacking.models.values():
            # Rules that only other models have matter where their layers differ by them.
            for rule in _rules(model):
                rules.setdefault(rule.key, rule)
        for key, rule in rules.items():
            own = values_of(rule, donor.part, donor.count)
            self._values[key] = {number: self._of(model, rule, own) for number, model in stacking.models.items()}
        self.rules = list(rules.values())

    def of(self, model: int, layer: int) -> tuple[str, ...]:
        """Return the configuration's values for a layer, as comparable text."""
        listed = (values[model] for values in self._values.values())
        return tuple(repr(values[layer]) if values is not None else "" for values in listed)

    def wanted(self, rule: LayerRule) -> list[Any] | None:
        """Return the values of the output's layers by one rule; None if it does not apply to the donor's layers.

        Raises:
            WeightspaceError: some of them have no value.
        """
        values = self._values[rule.key]
        donor = self._stacking.donor
        chosen = [_chosen(sources, donor) for sources in self._stacking.layers]
        wanted = [_at(values[model], layer) for model, layer in chosen]
        if values[donor] is None and len({repr(own) for own in wanted}) == 1:
            return None
        for model, layer in chosen:
            if values[donor] is None or values[model] is None:
                silent = self._stacking.models[donor if values[donor] is None else model]
                raise WeightspaceError(
                    f"The configuration of {silent.member.label} does not give {rule.key!r}, unlike those of "
                    f"other models, so layer {layer} has no value. Expected configurations with the same keys."
                )
        return wanted

    def differences(self) -> list[tuple[str, tuple[int, int], tuple[int, int]]]:
        """Return the keys in which merged layers differ, each with the layer whose value is used and another one."""
        found = {}
        for key, values in self._values.items():
            for sources in self._stacking.layers:
                own = _chosen(sources, self._stacking.donor)
                for other in sources:
                    known = values[own[0]] is not None and values[other[0]] is not None
                    if known and _at(values[own[0]], own[1]) != _at(values[other[0]], other[1]):
                        found.setdefault(key, (key, own, other))
        return list(found.values())

    def _of(self, model: SlicedModel, rule: LayerRule, donors: Sequence[Any] | None) -> list[Any] | None:
        """Return a rule's values for a model's layers; without any, the donor's if it has as many layers."""
        own = values_of(rule, model.part, model.count)
        if own is None and donors is not None and model.count == len(donors):
            return list(donors)
        return own


def values_of(rule: LayerRule, config: Config, count: int) -> list[Any] | None:
    """Return a rule's values for the layers; None if the configuration is not as the rule expects."""
    try:
        return rule.values(config, count)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError):
        return None


def check_configurations(stacking: Stacking) -> None:
    """Check that configurations fit the tensor names, and that slices of several models can form one network.

    Raises:
        WeightspaceError: a list's length differs from the stack's and slices move layers, or layers share tensors.
    """
    for model in stacking.models.values() if stacking.moves else ():
        key = wrong_length(model.part, model.count)
        if key is not None:
            raise WeightspaceError(
                f"config.json of {model.member.label} has {len(model.part[key])} entries in {key!r}, but "
                f"{model.stack!r} has {model.count} layers. Expected one per layer: correct the configuration."
            )
    donor = stacking.models[stacking.donor]
    if donor.part.get("model_type") in _SHARING:
        models = {tuple(number for number, _ in sources) for sources in stacking.layers}
        if len(models) > 1:
            raise WeightspaceError(
                f"{donor.member.label} is a {donor.part['model_type']!r}, whose layers share tensors: they cannot come "
                "from several models. Merge the models whole."
            )


def _rules(model: SlicedModel) -> list[LayerRule]:
    """Return the rules in the configuration of a model."""
    return layer_rules(model.part, model.count, model.side)


def _chosen(sources: Sequence[tuple[int, int]], donor: int) -> tuple[int, int]:
    """Return the source whose values a merged layer gets: the donor of the configuration, else the first one."""
    return next((own for own in sources if own[0] == donor), sources[0])


def _at(values: Sequence[Any] | None, layer: int) -> Any:
    return None if values is None else values[layer]
