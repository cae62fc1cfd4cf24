"""Checks of state dicts: finite values, fitting shapes, and prefixes that are removed safely."""

from pathlib import Path

import pytest
import torch

from weightspace.checkpoints import (
    StateDict,
    check_compatible,
    check_finite,
    load_checkpoint,
    save_checkpoint,
)
from weightspace.errors import CheckpointError


def test_a_state_fits_itself_in_any_order_and_float_dtype(state: StateDict) -> None:
    other = {name: state[name] for name in reversed(state)}
    other["layer.weight"] = other["layer.weight"].half()
    other["steps"] = other["steps"].int()
    check_compatible(state, other)


MISFITS = {
    "a name missing": ({"steps": None}, r"1 name \('steps'\) only in left\.pt"),
    "a name too many": ({"extra": torch.ones(1)}, r"1 name \('extra'\) only in right\.pt"),
    "a shape": (
        {"layer.bias": torch.ones(4)},
        r"1 shape \('layer\.bias' \(5,\) against \(4,\)\) differs",
    ),
    "a kind": (
        {"layer.bias": torch.ones(5, dtype=torch.int64)},
        r"1 tensor \('layer\.bias' bfloat16 against int64\) float in one and integer in the other",
    ),
    "many names": (
        {f"x{i}": torch.ones(1) for i in range(1200)},
        r"1,200 names \('x0', 'x1', 'x2', …\) only in right\.pt",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_mismatches_are_listed_and_counted(case: str, state: StateDict) -> None:
    changes, message = MISFITS[case]
    other = {name: value for name, value in {**state, **changes}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        check_compatible(state, other, names=("left.pt", "right.pt"))
    assert "\n" not in str(caught.value)


def test_a_prefix_is_suggested_when_no_name_is_shared(state: StateDict) -> None:
    with pytest.raises(CheckpointError, match=r"3 names .* only in a; 3 names .* only in b.*strip_prefix"):
        check_compatible(state, {f"module.{name}": tensor for name, tensor in state.items()})


def test_a_prefix_is_stripped_on_request_only(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.pt")
    assert next(iter(load_checkpoint(tmp_path / "a.pt"))) == "module.layer.weight"
    assert list(load_checkpoint(tmp_path / "a.pt", strip_prefix="module.")) == list(state)


@pytest.mark.parametrize("names", [("module.w", "w"), ("module.",)])
def test_a_prefix_that_leaves_no_clear_name_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    save_checkpoint({name: torch.ones(1) for name in names}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: without the prefix 'module\.', "):
        load_checkpoint(tmp_path / "a.pt", strip_prefix="module.")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_refused_on_request(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    tensor = torch.ones(4, 5, dtype=dtype)
    tensor[3, 1] = value
    save_checkpoint({"good": torch.ones(2), "bad": tensor, "n": torch.tensor(3)}, tmp_path / "a.safetensors")
    load_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: 1 tensor \('bad' 1 of 20\) with NaN or infinite"):
        load_checkpoint(tmp_path / "a.safetensors", finite=True)


def test_finite_values_pass(state: StateDict) -> None:
    check_finite({**state, "empty": torch.ones(0), "bool": torch.tensor(True)}, "a.pt")
