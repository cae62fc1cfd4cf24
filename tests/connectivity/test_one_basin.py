"""Two seeds lie in two basins, and in one once their hidden units are matched."""

from collections.abc import Callable

import pytest

import weightspace as ws
from weightspace.checkpoints import StateDict

#: Task -> least naive barrier, largest matched one (nats of test loss).
GATES = {"digits-mlp": (0.5, 0.05), "digits-cnn": (0.2, None), "fashion-mlp": (1.2, 0.05)}


@pytest.mark.parametrize("name", GATES)
def test_matching_brings_two_seeds_into_one_basin(name: str, trained: Callable[[str, int], StateDict]) -> None:
    task = ws.load_task(name)
    a, b = trained(name, 0), trained(name, 1)
    spec = ws.derive_spec(task.network(), task.example_args)
    matched = ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)
    naive, close = (ws.barrier(ws.loss_curve(task, a, end, points=11)) for end in (b, matched))
    least, largest = GATES[name]
    assert naive > least
    assert close <= (0.1 * naive if largest is None else largest)
