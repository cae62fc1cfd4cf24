"""Small networks of every kind, in float64 so that equalities are exact, and tasks on random data for them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.tasks import ClassificationTask, Examples

CLASSES = 4
VECTOR, IMAGE, TOKENS = (6,), (3, 6, 6), (5, 8)


class Residual(nn.Module):
    """A stem, a block around which a shortcut goes, and a head."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), norm(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        stem = self.stem_norm(self.stem(images)).relu()
        return self.head((stem + self.norm(self.conv(stem)).relu()).mean((2, 3)))


class Heads(nn.Module):
    """Two heads, whose outputs are added; an output layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.hidden(vectors), inplace=True)
        return self.left(hidden).log_softmax(1) + self.right(hidden).tanh()


class Shared(nn.Module):
    """One layer used twice, two layers that share a weight, one with weight norm, and an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.ordinary = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.tied.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.twice, self.ordinary, self.twice, self.tied, self.other, self.normed):
            x = layer(x).relu()
        return self.head(x)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(inplace=True), nn.Linear(7, CLASSES))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, CLASSES))


def layer_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, CLASSES))


def batch_normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(6, 9, bias=False), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, CLASSES)),
    )


def upwards() -> nn.Module:
    """Transposed and grouped convolutions, one without a bias."""
    return nn.Sequential(
        *(nn.ConvTranspose2d(3, 6, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ReLU()),
        *(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, CLASSES),
    )


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.1, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, CLASSES))


#: Name -> builder, shape of one input, and the layers whose units REPAIR sets.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[str, ...]]] = {
    "plain": (plain, VECTOR, ("0", "2")),
    "layer norm": (layer_normed, VECTOR, ("0", "3")),
    "batch norm": (batch_normed, VECTOR, ("1", "4")),
    "residual": (partial(Residual, lambda _: nn.Identity()), IMAGE, ("stem", "conv")),
    "residual batch norm": (partial(Residual, nn.BatchNorm2d), IMAGE, ("stem_norm", "norm")),
    "transposed and grouped": (upwards, IMAGE, ("0", "2", "4")),
    "attention": (attention, TOKENS, ("0.linear1", "0.linear2")),
    "two heads": (Heads, VECTOR, ("hidden",)),
    "shared": (Shared, VECTOR, ("ordinary", "normed")),
}


def task(name: str) -> ClassificationTask:
    """Return a task of a network of the table, with random data in float64."""
    build, shape, _ = NETWORKS[name]
    return task_of(build, shape)


def task_of(build: Callable[[], nn.Module], shape: tuple[int, ...] = VECTOR) -> ClassificationTask:
    return ClassificationTask("tiny", lambda: build().double(), lambda: _splits(shape), batch_size=40)


def _splits(shape: tuple[int, ...]) -> dict[Any, Examples]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, *shape, generator=generator, dtype=torch.float64) + 0.5
    return {split: Examples(inputs, torch.arange(120) % CLASSES) for split in ("train", "validation", "test")}


def weights(found: Any, seed: int) -> StateDict:
    """Return weights as if trained: those of the seed, with norms and biases far from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = {name: tensor.detach() for name, tensor in found.network().state_dict().items()}
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor += torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    return state


def outputs(found: Any, state: StateDict, layers: tuple[str, ...]) -> dict[str, Tensor]:
    """Return all outputs of layers over the training data in evaluation mode, ``(values, units)``."""
    network = found.network().eval()
    network.load_state_dict(state)
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    for name in layers:
        network.get_submodule(name).register_forward_hook(
            lambda layer, _, out, name=name: seen[name].append(out.clone())
        )
    with torch.no_grad():
        for inputs, _ in found.batches("train", 0):
            network(inputs)
    axes = {name: -1 if isinstance(network.get_submodule(name), nn.Linear) else 1 for name in layers}
    return {
        name: torch.cat([out.movedim(axes[name], -1).flatten(0, -2) for out in found]) for name, found in seen.items()
    }


class Quadratic:
    """Loss ``½ w·A w + c·w`` of one vector of weights, whatever the data: every curve is known in closed form."""

    name, objective = "quadratic", "loss"
    example_args = (torch.ones(1, 1),)

    def __init__(self, matrix: Tensor, linear: Tensor) -> None:
        self.matrix, self.linear = matrix, linear

    def network(self) -> nn.Module:
        return nn.Linear(len(self.linear), 1, bias=False).double()

    def loss(self, module: Any, batch: Any) -> Tensor:
        weight = module.weight[0]
        return batch * (weight @ self.matrix @ weight / 2 + self.linear @ weight)

    def score(self, module: Any, split: str = "test") -> dict[str, float]:
        return {"loss": self.loss(module, 1.0).item()}

    def batches(self, split: str, seed: int) -> Iterator[float]:
        yield from (0.5, 1.5)  # whose mean is 1


def vector(*values: float) -> StateDict:
    """Return the weights of a ``Quadratic``."""
    return {"weight": torch.tensor([values], dtype=torch.float64)}
