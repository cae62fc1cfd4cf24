"""GPTQ, AWQ and integers of compressed-tensors are read as their definitions say, element by element."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_dequantised
from weightspace.checkpoints.quantised import panels
from weightspace.checkpoints.quantised.view import dequantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError

OUTPUTS, INPUTS, GROUPS = 24, 64, 4

#: Files that the formats' libraries packed; test_library_files.py compares their values.
DATA = Path(__file__).parents[2] / "data" / "quantised"


def integers(*shape: int, bits: int, seed: int) -> Tensor:
    return torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(9)) + 0.01).to(dtype)


def packed(numbers: Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Return integers as words of 32 bits along an axis, bit by bit; ``order`` are the numbers of a word."""
    moved, each = numbers.movedim(dim, -1), 32 // bits
    order = order or tuple(range(each))
    words = torch.zeros(*moved.shape[:-1], moved.shape[-1] // each, dtype=torch.int64)
    for place, own in enumerate(order):
        words |= moved[..., own::each] << (bits * place)
    words = torch.where(words >= 2**31, words - 2**32, words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def folder(path: Path, settings: dict[str, Any], state: dict[str, Tensor]) -> Path:
    ws.save_checkpoint(state, path)
    (path / "config.json").write_text(json.dumps({"torch_dtype": "float16", "quantization_config": settings}))
    return path


def gptq(bits: int, group_of: Tensor, *, less_one: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of a matrix, and the matrix; its zero points are positive, so that none becomes −1."""
    codes, zeros = integers(INPUTS, OUTPUTS, bits=bits, seed=0), integers(GROUPS, OUTPUTS, bits=bits, seed=1).clamp(1)
    scale = scales(GROUPS, OUTPUTS)
    matrix = torch.empty(OUTPUTS, INPUTS)
    for o in range(OUTPUTS):
        for i in range(INPUTS):
            g = int(group_of[i])
            matrix[o, i] = scale[g, o].float() * (codes[i, o] - zeros[g, o])
    stored = (zeros - 1) % 2**bits if less_one else zeros
    state = {
        "q.qweight": packed(codes, bits, 0),
        "q.qzeros": packed(stored, bits, 1),
        "q.scales": scale,
        "q.g_idx": group_of.int(),
        "q.bias": torch.ones(OUTPUTS),
    }
    return state, matrix


IN_ORDER = torch.arange(INPUTS) // (INPUTS // GROUPS)
ANY_ORDER = IN_ORDER[torch.randperm(INPUTS, generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize("panel", [2**19, 600])
@pytest.mark.parametrize("order", ["groups", "act-order"])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(bits: int, order: str, panel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL", panel)
    state, matrix = gptq(bits, IN_ORDER if order == "groups" else ANY_ORDER)
    model = folder(tmp_path / "a", {"quant_method": "gptq", "bits": bits, "desc_act": order != "groups"}, state)
    found = load_dequantised(model)
    assert found.keys() == {"q.weight", "q.bias"}
    assert torch.equal(found["q.weight"], matrix)
    reader = CheckpointReader(dequantised(read_contents(model))).stored("q.weight")
    assert reader is not None
    for start, stop in [(0, 1), (63, 65), (500, 900), (1535, 1536)]:
        assert torch.equal(reader.read(start, stop), matrix.view(-1)[start:stop])


def test_gptq_of_the_second_format_and_without_an_order(tmp_path: Path) -> None:
    state, matrix = gptq(4, IN_ORDER, less_one=False)
    del state["q.g_idx"]
    model = folder(tmp_path / "a", {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"}, state)
    assert torch.equal(load_dequantised(model)["q.weight"], matrix)


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_that_programs_store_differently_are_refused(bits: int, tmp_path: Path) -> None:
    shutil.copytree(DATA / f"gptq-{bits}-bits", tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["quantization_config"]["meta"] = {"quantizer": "auto_gptq:0.7.1"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="zero points of 0, stored minus one"):
        load_dequantised(tmp_path / "a")


def test_gptq_described_beside_the_configuration(tmp_path: Path) -> None:
    state, matrix = gptq(4, IN_ORDER)
    ws.save_checkpoint(state, tmp_path / "a")
    (tmp_path / "a" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16, "desc_act": False}))
    assert torch.equal(load_dequantised(tmp_path / "a")["q.weight"], matrix)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "GPTQ with checkpoint_format 'marlin'"),
        ({"quant_method": "gptq", "rotation": "hadamard"}, "GPTQ with rotation"),
        ({"quant_method": "auto-round"}, "is quantised"),
        ({"quant_method": "awq"}, "is quantised"),
    ],
)
def test_gptq_of_other_kinds_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    state, _ = gptq(4, IN_ORDER)
    with pytest.raises(CheckpointError, match=message):
        load_dequantised(folder(tmp_path / "a", settings, state))


def test_a_file_alone_does_not_say_how_its_integers_are_packed(tmp_path: Path) -> None:
    ws.save_checkpoint(gptq(4, IN_ORDER)[0], tmp_path / "a.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is quantised: GPTQ.* only read in a folder whose config\.json describes"
    ):
        load_dequantised(tmp_path / "a.safetensors")


def test_a_group_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    state, _ = gptq(4, IN_ORDER)
    state["q.g_idx"] += 1
    with pytest.raises(CheckpointError, match="names group 4; expected 0 to 3"):
        load_dequantised(folder(tmp_path / "a", {"quant_method": "gptq"}, state))


def awq() -> tuple[dict[str, Tensor], Tensor]:
    codes, zeros = integers(INPUTS, OUTPUTS, bits=4, seed=0), integers(GROUPS, OUTPUTS, bits=4, seed=1)
    scale = scales(GROUPS, OUTPUTS)
    matrix = torch.empty(OUTPUTS, INPUTS)
    for o in range(OUTPUTS):
        for i in range(INPUTS):
            g = i // (INPUTS // GROUPS)
            matrix[o, i] = scale[g, o].float() * (codes[i, o] - zeros[g, o])
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    state = {"q.qweight": packed(codes, 4, 1, order), "q.qzeros": packed(zeros, 4, 1, order), "q.scales": scale}
    return state, matrix


@pytest.mark.parametrize("panel", [2**19, 600])
def test_awq(panel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "PANEL", panel)
    state, matrix = awq()
    model = folder(tmp_path / "a", {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}, state)
    assert torch.equal(load_dequantised(model)["q.weight"], matrix)


@pytest.mark.parametrize("settings", [{"version": "gemv"}, {"bits": 8}, {"w_bit": 3}])
def test_awq_of_other_kinds_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is quantised: AWQ with"):
        load_dequantised(folder(tmp_path / "a", {"quant_method": "awq", **settings}, awq()[0]))


@pytest.mark.parametrize("columns", [64, 44])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_integers_of_compressed_tensors(bits: int, columns: int, tmp_path: Path) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = integers(6, columns, bits=bits, seed=0) - 2 ** (bits - 1)
    scale = scales(6, 4, dtype=torch.bfloat16)
    state = {
        "q.weight_packed": helpers.pack_to_int32(codes.to(torch.int8), bits),
        "q.weight_scale": scale,
        "q.weight_shape": torch.tensor([6, columns]),
    }
    model = folder(tmp_path / "a", {"quant_method": "compressed-tensors", "format": "pack-quantized"}, state)
    found = load_dequantised(model)
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], codes.float() * scale.float().repeat_interleave(columns // 4, 1))


@pytest.mark.parametrize("shape", [(1,), (6,), (6, 1)])
def test_bytes_of_compressed_tensors(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes, scale = integers(6, 40, bits=8, seed=0) - 128, scales(*shape, dtype=torch.float32)
    state = {"q.weight": codes.to(torch.int8), "q.weight_scale": scale}
    model = folder(tmp_path / "a", {"quant_method": "compressed-tensors", "format": "int-quantized"}, state)
    expected = codes.float() * (scale.view(-1, 1) if scale.numel() > 1 else scale)
    assert torch.equal(load_dequantised(model)["q.weight"], expected)


STRATEGIES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "tensor": ({"strategy": "tensor"}, (1,)),
    "channel": ({"strategy": "channel"}, (13, 1)),
    "group": ({"strategy": "group", "group_size": 16}, (13, 4)),
}


def asymmetric(bits: int, strategy: str, *, is_packed: bool) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Return the tensors of a matrix with zero points, its settings, and its values, by compressed-tensors."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    options, shape = STRATEGIES[strategy]
    weights = quantization.QuantizationArgs(num_bits=bits, symmetric=False, **options)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=weights)
    kind = compressors.PackedQuantizationCompressor if is_packed else compressors.NaiveQuantizationCompressor
    generator = torch.Generator().manual_seed(0)
    parts = {
        "weight": torch.randn(13, 64, generator=generator),
        "weight_scale": torch.rand(shape, generator=generator) / 2 ** (bits - 3) + 0.01,
        "weight_zero_point": torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8),
    }
    packed = kind.compress(parts, scheme)
    values = kind.decompress(packed, scheme)["weight"]
    described = {"num_bits": bits, "symmetric": False, **options}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": described}}}
    return {f"q.{name}": tensor for name, tensor in packed.items()}, settings, values


@pytest.mark.parametrize("panel", [2**19, 600])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("bits", "is_packed"), [(4, True), (8, True), (8, False)])
def test_zero_points_of_compressed_tensors(
    bits: int, is_packed: bool, strategy: str, panel: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "PANEL", panel)
    state, settings, values = asymmetric(bits, strategy, is_packed=is_packed)
    model = folder(tmp_path / "a", settings, state)
    found = load_dequantised(model)
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], values)
    assert torch.equal(
        load_dequantised(folder(tmp_path / "b", {"quant_method": settings["quant_method"]}, state))["q.weight"], values
    )


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("weight_zero_point", None),
        ("weight_zero_point", torch.zeros(13, 4, dtype=torch.int32)),
        ("weight_zero_point", torch.zeros(2, 2, dtype=torch.int32)),
        ("weight_zero_point", torch.zeros(4, 13, dtype=torch.int8)),
        ("weight_g_idx", torch.zeros(64, dtype=torch.int32)),  # without actorder: group
    ],
)
def test_zero_points_and_orders_that_contradict_their_matrix_are_refused(
    part: str, tensor: Tensor | None, tmp_path: Path
) -> None:
    state, settings, _ = asymmetric(4, "group", is_packed=True)
    state.pop(f"q.{part}", None)
    state |= {} if tensor is None else {f"q.{part}": tensor}
    with pytest.raises(CheckpointError, match="is quantised"):
        load_dequantised(folder(tmp_path / "a", settings, state))


def test_an_order_that_was_not_set_is_that_of_the_columns(tmp_path: Path) -> None:
    state, settings, values = asymmetric(4, "group", is_packed=True)
    settings["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    for order in (torch.full((64,), -1), torch.arange(64) // 16):
        state["q.weight_g_idx"] = order.int()
        assert torch.equal(load_dequantised(folder(tmp_path / "a", settings, state))["q.weight"], values)
    for order in (torch.arange(64) // 8, torch.arange(64) // 16 - 1, torch.zeros(64)):
        state["q.weight_g_idx"] = order.int()
        with pytest.raises(CheckpointError, match="must name each of 4 groups 16 times"):
            load_dequantised(folder(tmp_path / "a", settings, state))


def test_a_merge_of_gptq_and_a_plain_model(tmp_path: Path) -> None:
    state, matrix = gptq(4, ANY_ORDER)
    model = folder(tmp_path / "a", {"quant_method": "gptq"}, state)
    tuned = {"q.weight": torch.randn(OUTPUTS, INPUTS).half(), "q.bias": torch.ones(OUTPUTS)}
    ws.save_checkpoint(tuned, tmp_path / "b")
    ws.merge_files([model, tmp_path / "b"], tmp_path / "out")
    merged = ws.load_checkpoint(tmp_path / "out")
    expected = ws.merge([{"q.weight": matrix, "q.bias": torch.ones(OUTPUTS)}, tuned])
    assert torch.equal(merged["q.weight"], expected["q.weight"].half())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_awq_of_eight_bits_is_refused_by_its_configuration(tmp_path: Path) -> None:
    """Words of four numbers have shapes that the reader of four bits doesn't expect."""
    state = {
        "q.qweight": torch.ones(16, 2).int(),
        "q.qzeros": torch.ones(1, 2).int(),
        "q.scales": torch.ones(1, 8).half(),
    }
    with pytest.raises(CheckpointError, match="is quantised: AWQ with 8 bits"):
        load_dequantised(folder(tmp_path / "a", {"quant_method": "awq", "bits": 8, "group_size": 16}, state))
