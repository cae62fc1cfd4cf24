import pytest
import torch

from weightspace.checkpoints import StateDict


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def state() -> StateDict:
    generator = torch.Generator().manual_seed(0)
    return {
        "layer.weight": torch.randn(5, 3, generator=generator),
        "layer.bias": torch.randn(5, generator=generator).bfloat16(),
        "steps": torch.tensor(7),
    }
