"""Specs of networks that take integers, several inputs, or inputs by name; and those that branch on values."""

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.errors import SpecError


class Tagger(nn.Module):
    """Takes token ids and a mask by name, as models of Hugging Face do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(20, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = self.inner(self.embed(input_ids) * attention_mask[..., None]).relu()
        return {"logits": self.head(hidden) * scale}


IDS, MASK = torch.arange(10).reshape(2, 5), torch.ones(2, 5, dtype=torch.int64)
EQUAL_INPUTS = {
    "in order": (IDS, MASK),
    "by name": {"input_ids": IDS, "attention_mask": MASK},
    "in another order": {"attention_mask": MASK, "input_ids": IDS},
    "a batch of a tokenizer": UserDict(input_ids=IDS, attention_mask=MASK),
    "with a number": {"input_ids": IDS, "attention_mask": MASK, "scale": 2.0},
}


@pytest.mark.parametrize("inputs", EQUAL_INPUTS)
def test_inputs_in_order_and_by_name_have_one_spec(inputs: str, tmp_path: Path) -> None:
    module, given = Tagger(), EQUAL_INPUTS[inputs]
    spec = ws.derive_spec(module, given)  # type: ignore[arg-type]
    assert spec.groups == {"embed": 8, "inner": 6}
    assert spec.axes == ws.derive_spec(module, (IDS, MASK)).axes
    spec.save(tmp_path / "spec.yaml")
    assert ws.load_spec(tmp_path / "spec.yaml", module, given).verification is not None  # type: ignore[arg-type]
    assert ws.verify_spec(spec, module, given).passed  # type: ignore[arg-type]


def test_one_tensor_is_the_only_input() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert ws.derive_spec(module, torch.ones(2, 6)).groups == {"layer.0": 8}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([IDS, MASK], "found list"),
        ({0: IDS}, "found dict"),
        (Tagger(), "found a module, which is the first argument"),
        ({"input_ids": IDS}, "cannot run on its example inputs \\(input_ids \\(2, 5\\) int64\\)"),
    ],
)
def test_other_inputs_are_a_line(inputs: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ws.derive_spec(Tagger(), inputs)


class Plain(nn.Module):
    """Without what the others below have."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.hidden(inputs).relu())


class If(Plain):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(inputs).relu()
        if hidden.sum() > 0:
            hidden = hidden * 2
        return self.head(hidden)


class Loop(Plain):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(inputs).relu()
        for _ in range(1 + int(inputs[0, 0].item() > 0)):
            hidden = hidden * 2
        return self.head(hidden)


class Chosen(Plain):
    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(inputs).relu()
        hidden = hidden[hidden.sum(1) > 0]
        return self.head(hidden * 2 if hidden.shape[0] > 1 else hidden)


@pytest.mark.parametrize("network", [If, Loop, Chosen])
def test_a_branch_on_values_is_one_line_that_says_what_to_do(
    network: type[Plain], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = (torch.ones(2, 6),)
    with pytest.raises(SpecError) as caught:
        ws.derive_spec(network(), inputs)
    assert "it branches on the values of its inputs" in str(caught.value)
    assert f"{Path(__file__).name}:" in str(caught.value)  # the line of the network
    assert "weightspace spec SPEC --network" in str(caught.value)
    assert capfd.readouterr() == ("", "")
    # And it works.
    ws.derive_spec(Plain(), inputs).save(tmp_path / "spec.yaml")
    assert ws.load_spec(tmp_path / "spec.yaml", network(), inputs).groups == {"hidden": 8}
