"""Networks with weight norm and spectral norm of every make, and what torch says their weights are."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from weightspace.checkpoints import StateDict

new_weight_norm, new_spectral_norm = parametrizations.weight_norm, parametrizations.spectral_norm
old_weight_norm, old_spectral_norm = nn.utils.weight_norm, nn.utils.spectral_norm


class ByBars(nn.Module):
    """Spectral norm as it was written for generative adversarial networks before torch had it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_bar = nn.Parameter(torch.randn(5, 3, 2))
        self.register_buffer("weight_u", torch.randn(5))
        self.register_buffer("weight_v", torch.randn(6))

    @property
    def weight(self) -> Tensor:
        return self.weight_bar / (self.weight_u @ self.weight_bar.flatten(1) @ self.weight_v)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.weight_bar.detach().flatten(1)
        if self.training:
            for _ in range(50):
                self.weight_v.copy_(nn.functional.normalize(matrix.T @ self.weight_u, dim=0))
                self.weight_u.copy_(nn.functional.normalize(matrix @ self.weight_v, dim=0))
        return x


#: Name -> builder of a layer, shape of its input, name of the weight.
WEIGHT_NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: new_weight_norm(nn.Linear(4, 3)), (2, 4), "weight"),
    "linear, old": (lambda: old_weight_norm(nn.Linear(4, 3)), (2, 4), "weight"),
    "convolution": (lambda: new_weight_norm(nn.Conv2d(2, 5, 3)), (1, 2, 4, 4), "weight"),
    "convolution, old": (lambda: old_weight_norm(nn.Conv1d(2, 5, 3)), (1, 2, 4), "weight"),
    "positional convolution": (lambda: new_weight_norm(nn.Conv1d(4, 4, 6, groups=2), dim=2), (1, 4, 9), "weight"),
    "transposed, old": (lambda: old_weight_norm(nn.ConvTranspose1d(4, 2, 3)), (1, 4, 5), "weight"),
    "transposed along outputs": (lambda: new_weight_norm(nn.ConvTranspose1d(4, 2, 3), dim=1), (1, 4, 5), "weight"),
    "one norm": (lambda: new_weight_norm(nn.Linear(4, 3), dim=None), (2, 4), "weight"),
    "one norm, old": (lambda: old_weight_norm(nn.Linear(4, 3), dim=None), (2, 4), "weight"),
    "one output": (lambda: old_weight_norm(nn.Conv1d(4, 1, 7)), (1, 4, 9), "weight"),
    "one input": (lambda: new_weight_norm(nn.Linear(1, 6)), (2, 1), "weight"),
    "recurrent": (lambda: old_weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), (5, 3), "weight_hh_l0"),
    "bias, every element, old": (lambda: old_weight_norm(nn.Linear(4, 6), "bias", dim=0), (2, 4), "bias"),
    "recurrent, new": (lambda: new_weight_norm(nn.GRU(3, 4), "weight_ih_l0"), (5, 3), "weight_ih_l0"),
}
SPECTRAL_NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda: new_spectral_norm(nn.Linear(9, 7)), (2, 9), "weight"),
    "linear, old": (lambda: old_spectral_norm(nn.Linear(9, 7)), (2, 9), "weight"),
    "square": (lambda: new_spectral_norm(nn.Linear(8, 8)), (2, 8), "weight"),
    "convolution": (lambda: new_spectral_norm(nn.Conv2d(4, 6, 3)), (1, 4, 5, 5), "weight"),
    "convolution, old": (lambda: old_spectral_norm(nn.Conv1d(4, 6, 3)), (1, 4, 5), "weight"),
    "transposed": (lambda: new_spectral_norm(nn.ConvTranspose2d(4, 6, 2)), (1, 4, 3, 3), "weight"),
    "transposed, old": (lambda: old_spectral_norm(nn.ConvTranspose1d(4, 6, 3)), (1, 4, 5), "weight"),
    "transposed and square": (lambda: new_spectral_norm(nn.ConvTranspose2d(5, 5, 2)), (1, 5, 3, 3), "weight"),
    "transposed and square, old": (lambda: old_spectral_norm(nn.ConvTranspose1d(5, 5, 3)), (1, 5, 5), "weight"),
    "several powers": (lambda: new_spectral_norm(nn.Linear(9, 7), n_power_iterations=4), (2, 9), "weight"),
    "embedding": (lambda: new_spectral_norm(nn.Embedding(9, 4)), (), "weight"),
    "by bars": (ByBars, (1,), "weight"),
}
BOTH: tuple[Callable[[], nn.Module], tuple[int, ...], str] = (
    lambda: new_spectral_norm(new_weight_norm(nn.Conv1d(4, 6, 3))),
    (1, 4, 5),
    "weight",
)


def build(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return make()


def run(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Run a layer once, by which the old functions make the weight."""
    with torch.no_grad():
        network(torch.ones(shape) if shape else torch.tensor([0, 1]))
    return network


def fine_tunes(
    kind: tuple[Callable[[], nn.Module], tuple[int, ...], str], count: int, size: float = 0.7
) -> list[StateDict]:
    """Return models that started from one and went their ways, their singular vectors in order."""
    make, shape, _ = kind
    start = build(make).state_dict()
    states = []
    for seed in range(count):
        network = build(make)
        network.load_state_dict(start)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                moved = torch.randn(parameter.shape, generator=generator) * parameter.abs().mean() * size
                parameter += moved
            for name, parameter in network.named_parameters():
                if name.endswith(("_v", "original1")):  # its length means nothing, and differs
                    parameter *= 1.5 + seed
        for _ in range(300):
            run(network.train(), shape)
        states.append({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})
    return states


def weight_of(kind: tuple[Callable[[], nn.Module], tuple[int, ...], str], state: StateDict) -> Tensor:
    """Return the weight that a layer uses, by torch itself."""
    make, shape, name = kind
    network = build(make)
    network.load_state_dict(state)
    return getattr(run(network.eval(), shape), name).detach()


def largest_singular_value(kind: tuple[Callable[[], nn.Module], tuple[int, ...], str], weight: Tensor) -> float:
    """Return the spectral norm of a weight as spectral norm sees it."""
    layer = build(kind[0])
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    return float(torch.linalg.matrix_norm(weight.movedim(axis, 0).flatten(1).double(), 2))


def bits(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal(a: StateDict, b: StateDict) -> bool:
    """Return whether two state dicts are the same bit for bit."""
    return a.keys() == b.keys() and all(bits(a[name]) == bits(b[name]) for name in a)
