"""Singular values and vectors: alignment versus γ, inner products of the vectors, and the values themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.plots.picture import COLOURS, DASHES, Axes, AxesImage, Figure, MaxNLocator, write_picture
from weightspace.spectra import LayerSpectrum, SingularAlignment, Spectrum

_COLUMNS = 4
_HEAT = "BuPu"
_GREY = "#777777"


def draw_alignment(
    curves: Mapping[str, Sequence[SingularAlignment]], path: str | Path, *, title: str | None = None
) -> Figure:
    """Plot R_γ versus γ, one line per pair of networks.

    Args:
        curves: label -> alignments at several γ, as returned by ``alignments``, in the order of the legend.
        path: ``.png``, ``.svg`` or ``.pdf``; equal curves give identical files.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no curves, or the path has another suffix.
    """
    if not curves or not all(curves.values()):
        raise WeightspaceError("There are no alignments to draw; expected at least one curve, none of them empty.")
    return write_picture(path, lambda: _alignment_figure(curves, title))


def draw_heat_maps(
    maps: Mapping[str, Mapping[str, Tensor]], path: str | Path, *, leading: int = 32, title: str | None = None
) -> Figure:
    """Plot ``|u_i^a·u_j^b| |v_i^a·v_j^b|`` for the leading pairs of vectors; a bright diagonal means alignment.

    Args:
        maps: layer -> pair of networks -> ``cross_products``, ``(k_a, k_b)``; every layer has the same pairs, such as
            before and after matching. All share one colour scale.
        path: ``.png``, ``.svg`` or ``.pdf``; equal maps give identical files.
        leading: maximum number of vectors to show.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no maps, layers differ in their columns, or the path has another suffix.
    """
    pairs = list(next(iter(maps.values()), ()))
    if not pairs:
        raise WeightspaceError("There are no heat maps to draw; expected at least one layer.")
    if odd := [layer for layer, row in maps.items() if list(row) != pairs]:
        raise WeightspaceError(
            f"Layer {odd[0]!r} has heat maps of {', '.join(maps[odd[0]]) or 'nothing'}; expected {', '.join(pairs)}."
        )
    shown = {layer: {pair: one.abs()[:leading, :leading] for pair, one in row.items()} for layer, row in maps.items()}
    return write_picture(path, lambda: _heat_figure(shown, title))


def draw_spectra(
    networks: Mapping[str, Spectrum], path: str | Path, *, gamma: float | None = None, title: str | None = None
) -> Figure:
    """Plot the singular values of every layer in descending order, one line per network.

    Args:
        networks: label -> spectrum, of the same layers, in the order of the legend.
        path: ``.png``, ``.svg`` or ``.pdf``; equal spectra give identical files.
        gamma: marks this fraction of the largest value of the first network.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there are no networks, their layers differ, or the path has another suffix.
    """
    layers = list(next(iter(networks.values())).layers) if networks else []
    if not layers:
        raise WeightspaceError("There are no spectra to draw; expected at least one network with at least one layer.")
    if odd := [label for label, one in networks.items() if one.layers.keys() != set(layers)]:
        raise WeightspaceError(f"The layers of {odd[0]!r} differ from those of {next(iter(networks))!r}.")
    return write_picture(path, lambda: _spectra_figure(networks, layers, gamma, title))


def _alignment_figure(curves: Mapping[str, Sequence[SingularAlignment]], title: str | None) -> Figure:
    figure = Figure(figsize=(3.7, 2.8 + 0.2 * len(curves)), layout="constrained")
    axes = figure.subplots()
    for index, (label, curve) in enumerate(curves.items()):
        axes.plot(
            [one.gamma for one in curve],
            [one.total for one in curve],
            color=COLOURS[index % len(COLOURS)],
            dashes=DASHES[index % len(DASHES)],
            linewidth=1.8,
            label=label,
            clip_on=False,
        )
    axes.axhline(0, color=_GREY, linewidth=0.8, zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(top=1)
    axes.set_xlabel("γ: singular values of at least γ σ$_{max}$")
    axes.set_title("alignment R$_γ$", loc="left")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", frameon=False, handlelength=2.6)
    return _titled(figure, title)


def _heat_figure(maps: Mapping[str, Mapping[str, Tensor]], title: str | None) -> Figure:
    """Return a figure with one column per layer and one row per pair of networks."""
    pairs = list(next(iter(maps.values())))
    figure = Figure(figsize=(1.85 * len(maps) + 1.3, 1.8 * len(pairs) + 0.4), layout="compressed")
    grid = figure.subplots(len(pairs), len(maps), squeeze=False)
    largest = max((float(one.max()) for row in maps.values() for one in row.values() if one.numel()), default=0.0)
    images: list[AxesImage] = []
    for row, pair in zip(grid, pairs, strict=True):
        for axes, (layer, products) in zip(row, maps.items(), strict=True):
            images.append(_heat_panel(axes, products[pair], largest or 1.0))
            if axes in grid[0]:
                axes.set_title(layer, loc="left", fontsize=9)
            if axes in grid[-1]:
                axes.set_xlabel("vector j of B")
        row[0].set_ylabel(f"{pair}\nvector i of A")
    bar = figure.colorbar(images[0], ax=grid, shrink=0.7, aspect=25)
    bar.set_label("|u$_i$·u$_j$| |v$_i$·v$_j$|")
    bar.outline.set_visible(False)
    return _titled(figure, title)


def _heat_panel(axes: Axes, products: Tensor, largest: float) -> AxesImage:
    if not products.numel():  # a zero matrix has no vectors
        products = torch.zeros(1, 1)
    rows, columns = products.shape
    edges = (0.5, columns + 0.5, rows + 0.5, 0.5)  # vectors are counted from 1
    image = axes.imshow(products, cmap=_HEAT, vmin=0, vmax=largest, interpolation="nearest", extent=edges)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.tick_params(length=2)
    axes.spines[:].set_visible(True)
    return image


def _spectra_figure(
    networks: Mapping[str, Spectrum], layers: list[str], gamma: float | None, title: str | None
) -> Figure:
    columns = min(_COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(max(2.0 * columns, 3.0), 1.75 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        _values_panel(axes, {label: one.layers[layer] for label, one in networks.items()}, gamma)
        axes.set_title(layer, loc="left", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel("singular value σ$_i$")
    for axes in grid[-1]:
        axes.set_xlabel("rank i")
    handles = grid.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, handlelength=2.6)
    return _titled(figure, title)


def _values_panel(axes: Axes, networks: Mapping[str, LayerSpectrum], gamma: float | None) -> None:
    """Draw the values of one layer in several networks."""
    for index, (label, layer) in enumerate(networks.items()):
        values = layer.values.tolist()
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=COLOURS[index % len(COLOURS)],
            dashes=DASHES[index % len(DASHES)],
            linewidth=1.6,
            label=label,
        )
    if gamma:
        cut = gamma * float(next(iter(networks.values())).values[0])
        axes.axhline(cut, color=_GREY, linewidth=0.8, linestyle=(0, (1, 2)), label=f"{gamma:g} σ$_{{max}}$")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _titled(figure: Figure, title: str | None) -> Figure:
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
