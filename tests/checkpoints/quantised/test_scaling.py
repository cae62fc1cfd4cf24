"""Ranges of numbers times the scales of their blocks have the bits of the products computed one after the other."""

import pytest
import torch
from torch import Tensor

from weightspace.checkpoints.quantised import scaling
from weightspace.checkpoints.quantised.scaling import ScaledTensor, grid_of
from weightspace.checkpoints.reader import LoadedTensor

SHAPE, SCALES = (70, 300), {"tensor": (1,), "channel": (70, 1), "column": (1, 300), "block": (5, 3)}

#: Scales at the ends of float32's range: subnormal, and so large that they overflow when they are enlarged.
EXTREMES = torch.tensor([1e-45, -1e-39, 2.0**-130, 0.0, 1.0, -0.3, 2.0**119, 2.0**120, 3e38, torch.inf, torch.nan])


def product(values: Tensor, scales: Tensor) -> Tensor:
    rows, columns = (torch.arange(size) // -(-size // count) for size, count in zip(SHAPE, scales.shape, strict=True))
    return (values.float() * scales[rows][:, columns]).view(-1)


@pytest.mark.parametrize("piece", [1, 7, 1000, 2**17])
@pytest.mark.parametrize("codes", ["numbers", "NaN"])
@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("case", SCALES)
def test_a_range_has_the_bits_of_the_products(
    case: str, extreme: bool, codes: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(256, SHAPE, generator=generator, dtype=torch.uint8)
    if codes == "numbers":
        numbers[(numbers & 0x7F) == 0x7F] = 0x80  # −0
    shape = SCALES[case]
    scales = torch.rand(shape, generator=generator)
    if extreme:
        scales = EXTREMES[torch.randint(len(EXTREMES), shape, generator=generator)]
    values = numbers.view(torch.float8_e4m3fn)
    grid = grid_of(SHAPE, shape, (14, 100))
    assert grid is not None
    reader = ScaledTensor(LoadedTensor(values.view(-1)), LoadedTensor(scales.view(-1)), SHAPE, grid)
    expected = product(values, scales.view(1, 1) if case == "tensor" else scales)
    for start, stop in [(0, 21_000), (0, 1), (299, 301), (450, 20_111), (20_999, 21_000)]:
        found, own = reader.read(start, stop), expected[start:stop]
        assert torch.equal(found.isnan(), own.isnan())
        assert torch.equal(found[~own.isnan()].view(torch.int32), own[~own.isnan()].view(torch.int32))


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_one_nan_of_either_sign_is_found(code: int) -> None:
    codes = torch.arange(126, dtype=torch.uint8)
    codes[100] = code
    assert scaling.float32(codes.view(torch.float8_e4m3fn)).isnan().nonzero().tolist() == [[100]]
