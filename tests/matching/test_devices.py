"""Products of weight matching on another device; see ``simulated_device``."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from simulated_device import NAME, simulated_device
from weightspace.cli import main

import weightspace as ws
from weightspace.errors import WeightspaceError


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn"])
def test_weight_matching_is_the_same_on_a_device(name: str) -> None:
    task = ws.load_task(name)
    spec = ws.derive_spec(task.network(), task.example_args)
    torch.manual_seed(0)
    a, b = task.network().state_dict(), task.network().state_dict()
    expected = ws.weight_matching(spec, a, b, threads=1)
    with simulated_device() as operations:
        found = ws.weight_matching(spec, a, b, threads=1, device=NAME)
    assert sum("mm" in operation for operation in operations) >= 3
    assert found.permutation == expected.permutation
    assert found.objective == pytest.approx(expected.objective)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    task = ws.load_task("digits-mlp")
    spec, a = ws.derive_spec(task.network(), task.example_args), task.network().state_dict()
    with pytest.raises(WeightspaceError, match="The device 'cuda' cannot be used"):
        ws.weight_matching(spec, a, a, device="cuda")
    ws.save_checkpoint(a, tmp_path / "a.safetensors")
    words = ["match", str(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors"), "--task", "digits-mlp"]
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "p.safetensors"), "--device", "cuda"])
    assert done.exit_code == 2
    assert "The device 'cuda' cannot be used" in done.stderr
