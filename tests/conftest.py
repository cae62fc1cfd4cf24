"""Fixtures of all tests: one torch thread, and networks that are trained once, also by several workers.

This folder is put on the path, which --import-mode=importlib leaves off it, for the modules beside this one that tests
share.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weightspace.checkpoints import StateDict
from weightspace.tasks import Task, train
from weightspace.zoo import load_task

sys.path.insert(0, str(Path(__file__).parent))

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the Hub; `local_hub` has one of its own


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], StateDict]:
    """Return ``trained(task_name, seed)``: weights, from a file once some worker has trained them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def find(name: str, seed: int) -> StateDict:
        path = folder / f"trained-{name}-{seed}.pt"
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _write(train(load_task(name), seed), path)
        return torch.load(path, weights_only=True)

    return find


def _write(state: StateDict, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.rename(path)


@pytest.fixture(scope="session")
def digits_mlp() -> Task:
    return load_task("digits-mlp")


@pytest.fixture(scope="session")
def digits_cnn() -> Task:
    return load_task("digits-cnn")


@pytest.fixture(scope="session")
def mlp_states(trained: Callable[[str, int], StateDict]) -> tuple[StateDict, StateDict]:
    return trained("digits-mlp", 0), trained("digits-mlp", 1)


@pytest.fixture(scope="session")
def cnn_states(trained: Callable[[str, int], StateDict]) -> tuple[StateDict, StateDict]:
    return trained("digits-cnn", 0), trained("digits-cnn", 1)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """Return the folder of expected answers: the shared one where it exists, else the committed copy."""
    here = Path(__file__).parent
    for folder in (here.parents[1] / "shared" / "conformance", here / "data" / "conformance"):
        if folder.is_dir():
            return folder
    if os.environ.get("WEIGHTSPACE_CI") == "1":
        pytest.fail("the conformance cases are missing")
    pytest.skip("the conformance cases are missing")
