"""Tasks and fine-tunes that cost nothing, for the soups' tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.tasks import ClassificationTask, Examples

CLASSES = 4


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, CLASSES))


def plain_network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES))


def examples() -> dict[Any, Examples]:
    generator = torch.Generator().manual_seed(0)
    centres = 1.2 * torch.randn(CLASSES, 6, generator=generator)
    found = {}
    for split, count in (("train", 200), ("validation", 60), ("test", 100)):
        labels = torch.randint(CLASSES, (count,), generator=generator)
        found[split] = Examples(centres[labels] + torch.randn(count, 6, generator=generator), labels)
    return found


TASK = ClassificationTask("kitchen", network, examples)
PLAIN = ClassificationTask("plain", plain_network, examples)


class Erring(ClassificationTask):
    """A task that is scored by an error of any name: the share of wrong answers."""

    def score(self, module: nn.Module, split: Any = "test") -> dict[str, float]:
        found = super().score(module, split)
        return {"loss": found["loss"], self.objective: 1 - found["accuracy"]}


ERROR = Erring("error", plain_network, examples, objective="error")
QUALITY = Erring("quality", plain_network, examples, objective="quality")


def fine_tunes(task: ClassificationTask, count: int, *, steps: int = 12) -> tuple[StateDict, list[StateDict]]:
    """Return a model and fine-tunes of it with learning rates and orders of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = _trained(task, task.network().state_dict(), 0.02, 0, steps)
        rates = (0.003, 0.03, 0.01, 0.1)
        return base, [_trained(task, base, rates[seed % 4], seed + 1, steps) for seed in range(count)]


def _trained(task: ClassificationTask, state: StateDict, rate: float, seed: int, steps: int) -> StateDict:
    module = task.network()
    module.load_state_dict(state)
    optimizer = torch.optim.SGD(module.train().parameters(), lr=rate, momentum=0.9)
    for _, batch in zip(range(steps), _forever(task, seed), strict=False):
        optimizer.zero_grad()
        task.loss(module, batch).backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in module.eval().state_dict().items()}


def _forever(task: ClassificationTask, seed: int) -> Iterator[Any]:
    while True:
        yield from task.batches("train", seed)
        seed += 1000


def saved(states: list[StateDict], folder: Path, suffix: str = ".safetensors") -> list[Path]:
    from weightspace import save_checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}{suffix}" for number in range(len(states))]
    for state, path in zip(states, paths, strict=True):
        save_checkpoint(state, path)
    return paths


def equal(a: StateDict, b: StateDict) -> bool:
    """Return whether two state dicts are the same bit for bit, signs of zeros included."""
    return a.keys() == b.keys() and all(_bits(a[name]) == _bits(b[name]) for name in a)


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
