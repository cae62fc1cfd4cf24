"""``pixel_unshuffle`` gives the same spec as the views and the permutation that it stands for."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle
from zoo import PixelUnshuffledUnits

from weightspace.symmetry import derive_spec
from weightspace.symmetry.pattern import format_axes


def _written_out(x: Tensor, block: int) -> Tensor:
    blocks = x.unflatten(-1, (-1, block)).unflatten(-3, (-1, block))
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-5, -3)


class _Widths(nn.Module):
    """Hidden units along the width, of two layers laid end to end; ``unshuffle`` cuts them into blocks of two."""

    def __init__(self, unshuffle: Callable[[Tensor, int], Tensor], first: int, second: int) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.a, self.b = nn.Linear(3, first), nn.Linear(3, second)
        self.leave = nn.Linear((first + second) // 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.unshuffle(torch.cat([self.a(x), self.b(x)], -1).relu(), 2))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_the_index_of_a_channel_is_channel_then_row_then_column(block: int) -> None:
    networks = (PixelUnshuffledUnits(unshuffle, block) for unshuffle in (pixel_unshuffle, _written_out))
    spec, expected = (derive_spec(network, (torch.randn(4, 4),)) for network in networks)
    assert (spec.axes, spec.groups, spec.outer) == (expected.axes, expected.groups, expected.outer)
    assert len(spec.groups) == (3 if block == 1 else 5)
    assert spec.frozen == ()


@pytest.mark.parametrize("leading", [(5,), (2, 5), (2, 3, 5)])
def test_positions_that_are_units_keep_their_groups_for_any_leading_axes(leading: tuple[int, ...]) -> None:
    x = torch.randn(*leading, 4, 3)
    assert torch.equal(pixel_unshuffle(x[..., :2], 2), _written_out(x[..., :2], 2))
    spec, expected = (derive_spec(_Widths(f, 4, 6), (x,)) for f in (pixel_unshuffle, _written_out))
    assert (spec.axes, spec.groups, spec.outer) == (expected.axes, expected.groups, expected.outer)
    assert list(spec.groups.values()) == [2, 3]
    assert spec.frozen == ()


def test_units_that_a_block_mixes_are_frozen_and_reported() -> None:
    spec = derive_spec(_Widths(pixel_unshuffle, 3, 5), (torch.randn(2, 5, 4, 3),))
    assert not spec.groups
    assert spec.frozen == ("pixel_unshuffle: a.weight, a.bias, b.weight, b.bias",)


def test_a_block_as_high_as_the_picture_leaves_one_row() -> None:
    layers = nn.Conv2d(3, 5, 1), nn.ReLU(), nn.PixelUnshuffle(2), nn.Conv2d(20, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1)
    spec = derive_spec(nn.Sequential(*layers), (torch.randn(2, 3, 2, 6),))
    assert format_axes(spec.axes["3.weight"]) == "layer.3 (layer.0 4) 1 1"
    assert spec.frozen == ()
