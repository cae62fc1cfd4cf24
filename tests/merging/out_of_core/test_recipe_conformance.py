"""Recipes with every key of mergekit against mergekit 0.1.5; data/conformance/recipes/README.md says how."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from samples import half_way
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.merging import ExecutionOptions, merge_files

DATA = Path(__file__).parents[2] / "data" / "conformance" / "recipes"
CASES: dict[str, dict[str, str]] = yaml.safe_load((DATA / "cases.yml").read_text())

#: A case that is refused, since mergekit does not read its parameter there; a lenient reading ignores it, too.
REFUSED = "a parameter beside the parameters"


@cache
def expected(dtype: str) -> StateDict:
    return ws.load_checkpoint(DATA / "expected" / f"{dtype}.safetensors")


def of_case(case: str, dtype: str) -> StateDict:
    return {name.partition("::")[2]: t for name, t in expected(dtype).items() if name.partition("::")[0] == case}


def merged(case: str, dtype: str, out: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> StateDict:
    """Return what we make of a case, its output changed by keys of the document that makes it."""
    monkeypatch.chdir(DATA / "inputs" / dtype / CASES[case]["models"])
    documents: list[dict[str, Any]] = list(yaml.safe_load_all(CASES[case]["recipe"]))
    output = next((one for one in documents if "name" not in one), documents[-1])
    output.update(changes)
    out.with_suffix(".yml").write_text(yaml.safe_dump_all(documents))
    merge_files(out.with_suffix(".yml"), out, lenient=case == REFUSED, execution=ExecutionOptions(fsync=False))
    return ws.load_checkpoint(out)


def error(state: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> float:
    worst = [(state[n].double() - exact[n].double()).norm() / exact[n].double().norm().clamp_min(1e-30) for n in exact]
    return float(torch.stack(worst).max())


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_gives_what_mergekit_gives_in_float32(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, wanted = merged(case, "fp32", tmp_path / "out", monkeypatch), of_case(case, "fp32")
    assert found.keys() == wanted.keys()
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in wanted.items()}
    dtype = next(iter(wanted.values())).dtype
    assert error(found, wanted) < (2e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_in_bfloat16_gives_the_rounded_exact_result(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = merged(case, "bf16", tmp_path / "narrow", monkeypatch, out_dtype="bfloat16")
    exact = merged(case, "bf16", tmp_path / "exact", monkeypatch, out_dtype="float64")
    # Elements that cancel hold nothing but the rounding of float64.
    same = [
        (narrow[name] == t.bfloat16()) | half_way(narrow[name], t) | ((narrow[name].abs() < 1e-7) & (t.abs() < 1e-12))
        for name, t in exact.items()
    ]
    equal = torch.cat([one.flatten() for one in same])
    assert equal.double().mean() >= 0.999
    theirs = of_case(case, "bf16")
    assert narrow.keys() == theirs.keys()
    if all(tensor.dtype == torch.bfloat16 for tensor in theirs.values()):  # others say their dtype themselves
        assert error(narrow, exact) <= error(theirs, exact) + 1e-12


def test_the_cases_are_complete() -> None:
    for dtype in ("fp32", "bf16"):
        assert {name.partition("::")[0] for name in expected(dtype)} == set(CASES)
