"""Recurrences over time: LSTM, GRU and plain RNN, with several layers and both directions, and their cells.

Gates are packed along one axis and share the hidden units, ``(4 h)``; the recurrent weight maps these units to
themselves, so their group is on both of its axes. Initial and last states of all layers are one tensor, whose rows
belong to different groups. Packed sequences don't affect the weights: ``torch.export`` refuses them, but the spec of
the same layers on padded sequences is valid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, concat, fixed, freeze, product, unite
from weightspace.symmetry.rules.call import Axes, Call, Parts, Uniform, is_axes

#: Number of gates packed along the first axis of an operator's weights; a plain recurrence has one.
_GATES = {"lstm": 4, "gru": 3}


def recurrent(call: Call) -> list[Axes | Parts]:
    """Run layers over time; return the last one's outputs, and the last states, one row per layer and direction."""
    x = call["input"]
    time, batch = (1, 0) if call["batch_first"] else (0, 1)
    freeze(x[time])
    directions = 2 if call["bidirectional"] else 1
    count = len(call["params"]) // (call["num_layers"] * directions)
    layers = [call["params"][start : start + count] for start in range(0, len(call["params"]), count)]
    states = call.args["hx"] if call.name == "lstm" else [call.args["hx"]]
    given = list(zip(*(_rows(state, x[batch], len(layers)) for state in states), strict=True))
    inputs, kept = x[2], []
    for start in range(0, len(layers), directions):
        here = slice(start, start + directions)
        kept += [_layer(call, inputs, *pair) for pair in zip(layers[here], given[here], strict=True)]
        inputs = concat(*(units[0] for units in kept[here]))
    return [(*x[:2], inputs), *(_stack(units, x[batch]) for units in zip(*kept, strict=True))]


def cell(call: Call) -> Axes | list[Axes]:
    """Run one step of one layer."""
    batch, inputs = call["input"]
    states = call["hx"] if call.name == "lstm_cell" else [call["hx"]]
    for state in states:
        unite(state[0], batch)
    weights = [axes for axes in (call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")) if is_axes(axes)]
    units = _layer(call, inputs, weights, [state[1] for state in states])
    new = [(batch, axis) for axis in units]
    return new if call.name == "lstm_cell" else new[0]


def _layer(call: Call, inputs: Axis, weights: Sequence[Axes], states: Sequence[Axis | None]) -> list[Axis]:
    """Unite the shared axes of one layer and direction; return the units of its states, its outputs first.

    Args:
        call: the operator.
        inputs: its input features.
        weights: of input and recurrence, then optionally their biases, then optionally an LSTM's projection.
        states: the units of the initial states, None if they are zero.
    """
    gates = _GATES.get(call.name.partition("_")[0], 1)
    ih, hh, *others = weights
    hidden = Atom(hh[0].size // gates)
    unite(hh[0], product(fixed(gates), hidden))
    for vector in (ih, *(axes for axes in others if len(axes) == 1)):
        unite(vector[0], hh[0])
    projection = next((axes for axes in others if len(axes) == 2), None)
    if projection:
        unite(projection[1], hidden)
    output = projection[0] if projection else hidden
    unite(ih[1], inputs)
    unite(hh[1], output)
    for matrix in (ih, hh, *([projection] if projection else ())):
        call.mix(matrix[1:], matrix[:1])
    units = [output, hidden][: len(states)]
    for state, own in zip(states, units, strict=True):
        if state is not None:
            unite(state, own)
    return units


def _rows(state: Axes | Parts, batch: Axis, count: int) -> Iterator[Axis | None]:
    """Yield the units of each row of an initial state ``(layers, batch, units)``, None if all entries are equal."""
    if isinstance(state, Uniform):
        yield from [None] * count
        return
    if isinstance(state, Parts) and state.place:
        state = state.together()
    for axes in state.alternatives if isinstance(state, Parts) else [state] * count:
        freeze(axes[0], "")
        unite(axes[1], batch)
        yield axes[2]


def _stack(units: Sequence[Axis], batch: Axis) -> Axes | Parts:
    """Return last states ``(layers, batch, units)``, whose rows have separate units."""
    marker = fixed(len(units))
    rows: list[Axes] = [(marker, batch, one) for one in units]
    return Parts(marker, tuple(rows)) if len(rows) > 1 else rows[0]
