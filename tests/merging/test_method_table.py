"""The table of merge methods is generated from their declarations."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import pytest
import torch

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging.methods import METHODS, Method, Parameter
from weightspace.merging.methods import _declaration as declaration
from weightspace.merging.methods import _loading as loading
from weightspace.merging.methods._table import TABLE, table_of
from weightspace.merging.methods._tensor_stack import Formula, TensorStack
from weightspace.merging.recipe import merge_roles


def test_the_table_is_that_of_the_declarations() -> None:
    expected = table_of(declaration.declared_methods())
    assert TABLE.read_text(encoding="utf-8") == expected, "Run python -m weightspace.merging.methods"


def test_reading_the_table_imports_no_torch() -> None:
    code = (
        "import sys; from weightspace.merging.methods import METHODS; assert METHODS; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_annotated_keywords_are_the_parameters() -> None:
    def example(
        stack: TensorStack,
        weights: Sequence[float],
        *,
        lambda_: Annotated[float, Parameter(help="a factor", low=0)] = 1.0,
        share: Annotated[Sequence[float], Parameter(help="a share")] = (0.5,),
        needed: Annotated[str, Parameter(help="a word", choices=("a", "b"))],
        found: Sequence[float] | None = None,
    ) -> Formula:
        raise NotImplementedError

    assert list(declaration._parameters(example)) == [
        Parameter("lambda", 1.0, "a factor", low=0),
        Parameter("share", 0.5, "a share", per_model=True),
        Parameter("needed", None, "a word", choices=("a", "b")),
    ]


def test_a_default_that_is_computed_is_declared_in_words() -> None:
    words = Parameter(help="a factor", computed="1 / models")

    def example(
        *,
        factor: Annotated[float | None, words] = None,
        as_in_python_3_10: Optional[Annotated[float | None, words]] = None,  # noqa: UP045
    ) -> None:
        raise NotImplementedError

    found = list(declaration._parameters(example))
    assert [(one.name, one.default, one.computed, one.required) for one in found] == [
        ("factor", None, "1 / models", False),
        ("as_in_python_3_10", None, "1 / models", False),
    ]
    row = Method("example", "", "", "", tuple(found))
    assert row.arguments({"factor": 2}, 3) == {"factor": 2.0, "as_in_python_3_10": None}


@pytest.mark.parametrize(("default", "computed"), [(None, ""), (1.0, "1 / models")])
def test_a_default_is_either_given_or_computed(default: float | None, computed: str) -> None:
    def example(*, factor: Annotated[float | None, Parameter(help="a factor", computed=computed)] = default) -> None:
        raise NotImplementedError

    with pytest.raises(WeightspaceError, match="Expected the default None together with computed"):
        list(declaration._parameters(example))


def scaled_by_depth(stack: TensorStack, weights: Sequence[float], *, largest: float = 0.0) -> Formula:
    number, count = stack.layer or (0, 1)
    return lambda chunk: chunk.tensors[0] * (number + 1) / count + largest


def largest_of_all(stacks: Sequence[TensorStack], arguments: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    largest = max(float(chunk.models.max()) for stack in stacks for chunk in stack.chunks())
    return {stack.name: {"largest": largest} for stack in stacks}


@pytest.fixture
def example_method(monkeypatch: pytest.MonkeyPatch) -> Method:
    row = Method("example", "example:example", "", "", global_pass="example:pass", weighted=False)
    functions = {"example:example": scaled_by_depth, "example:pass": largest_of_all}
    monkeypatch.setattr(loading, "_load", functions.__getitem__)
    monkeypatch.setattr(merge_roles, "METHODS", {**METHODS, "example": row})
    return row


def test_a_global_pass_without_a_condition_always_runs_and_methods_see_the_layer(
    example_method: Method, tmp_path: Path
) -> None:
    names = ["embed.weight", *(f"layers.{number}.w" for number in range(4))]
    state = {name: torch.ones(2, 2) for name in names}
    expected = {name: 1 + share for name, share in zip(names, (1, 0.25, 0.5, 0.75, 1), strict=True)}
    merged = ws.merge([state], "example")
    assert {name: tensor[0, 0].item() for name, tensor in merged.items()} == expected
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    ws.merge_files([tmp_path / "a.safetensors"], tmp_path / "out.safetensors", method="example")
    from_file = ws.load_checkpoint(tmp_path / "out.safetensors")
    assert {name: tensor[0, 0].item() for name, tensor in from_file.items()} == expected
