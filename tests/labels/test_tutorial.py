"""The tutorial on training through the rule runs as it is written, and shows what it says."""

import re
from pathlib import Path

import pytest
import torch

TUTORIAL = Path(__file__).parents[2] / "docs" / "pages" / "tutorials" / "training-through-the-rule.md"


def test_the_tutorial_runs_and_its_figures_are_those_of_the_text() -> None:
    text = TUTORIAL.read_text()
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            exec(compile(block, str(TUTORIAL), "exec"), names)
    squared = dict(names["squared"])  # type: ignore[call-overload]
    assert list(squared) == ["argmax", "rule after training", "trained through the rule"]
    assert squared["trained through the rule"] < squared["rule after training"] < squared["argmax"]
    said = re.search(r"it is ([\d.]+) for argmax, ([\d.]+) for the rule.*?and ([\d.]+) for", text, flags=re.DOTALL)
    assert said is not None
    assert list(squared.values()) == pytest.approx([float(figure) for figure in said.groups()], rel=0.1)
