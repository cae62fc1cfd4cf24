"""Matrices quantised in pieces have the bits of those quantised as a whole."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.merging.out_of_core import quantising
from weightspace.merging.out_of_core.quantising import quantised
from weightspace.merging.plan.plan import Scales

SHAPE = (12, 40)


def matrix(kind: str) -> Tensor:
    """Return numbers of all sizes, with subnormal ones, zeros of both signs and a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-149, 127, SHAPE, generator=generator).double()
    values = (torch.randn(SHAPE, generator=generator).double() * 2.0**exponents).float()
    if kind == "normal":
        values = torch.randn(SHAPE, generator=generator)
    values[:4, :8] = torch.tensor([0.0, -0.0]).repeat(4, 4)
    if kind == "NaN and infinity":
        values[5, 5], values[9, 20], values[2, 30] = torch.nan, torch.inf, -torch.inf
    return values


def whole(values: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    blocks = values.view(SHAPE[0] // block[0], block[0], SHAPE[1] // block[1], block[1])
    scale = (blocks.abs().amax((1, 3), keepdim=True) / 448).clamp(min=torch.finfo(torch.float32).tiny)
    return (blocks / scale).to(torch.float8_e4m3fn).flatten(), scale.flatten()


@pytest.mark.parametrize("piece", [1, 50, 2**17])
@pytest.mark.parametrize("block", [(4, 8), (1, 40), (2, 20), SHAPE])
@pytest.mark.parametrize("kind", ["normal", "all sizes", "NaN and infinity"])
def test_pieces_have_the_bits_of_the_whole(
    kind: str, block: tuple[int, int], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantising, "_PIECE", piece)
    values = matrix(kind)

    def chunks() -> Iterator[tuple[int, Tensor]]:
        room = torch.empty(100)  # chunks share their memory
        for start in range(0, values.numel(), 100):
            own = values.view(-1)[start : start + 100]
            yield start, room[: len(own)].copy_(own)

    codes, scales = torch.empty(values.numel(), dtype=torch.uint8), torch.empty(values.numel() // (block[0] * block[1]))
    scheme = Scales("s", TensorInfo("F32", tuple(scales.shape)), block, ("w",))
    for start, part, first, own in quantised(SHAPE, scheme, chunks):
        codes[start : start + len(part)] = part.view(torch.uint8)
        scales[first : first + len(own)] = own
    expected, expected_scales = whole(values, block)
    if block == SHAPE and kind == "NaN and infinity":
        return  # the scale of a whole tensor depends on the order of its chunks
    assert torch.equal(scales.isnan(), expected_scales.isnan())
    assert torch.equal(scales.nan_to_num(1), expected_scales.nan_to_num(1))
    assert torch.equal(codes, expected.view(torch.uint8))
