"""Notices about slices: the chosen stack, and configurations that disagree with the layers."""

from __future__ import annotations

from collections.abc import Iterator

from weightspace.merging.config.sections import count_keys
from weightspace.merging.slices.layer_values import LayerValues
from weightspace.merging.slices.stacking import Stacking


def slice_notices(stacking: Stacking) -> Iterator[str]:
    """Yield lines about the chosen stack, and about configurations that disagree with the layers.

    Args:
        stacking: the stacked slices.
    """
    donor = stacking.models[stacking.donor]
    others = [stack for stack in donor.layers.stacks if stack != donor.stack and donor.layers.is_counted(stack)]
    if others:
        listed = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        yield f"layer_range refers to the {donor.count} layers of {donor.stack}; {listed} stay whole."
    for model in stacking.models.values():
        keys = count_keys(model.part, model.side, model.count, model.stack)
        if keys and model.part[keys[0]] != model.count:
            yield (
                f"config.json of {model.member.label} says {keys[0]}: {model.part[keys[0]]}, but {model.stack} has "
                f"{model.count} layers. The tensor names are used."
            )
    for key, (own, layer), (other, counterpart) in LayerValues(stacking).differences():
        yield (
            f"Layer {layer} of {stacking.models[own].member.label} and layer {counterpart} of "
            f"{stacking.models[other].member.label}, which are merged, differ in {key}; the former's is used."
        )
