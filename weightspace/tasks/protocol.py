"""The ``Task`` protocol: written once by a user, and passed to every command.

Any object with these members is a task; no base class is needed. Losses are in nats, accuracies are fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.symmetry.inputs import ExampleInputs
from weightspace.tasks.objectives import Mode, task_mode

#: ``train`` is for gradients and statistics, ``validation`` for selection, ``test`` for reporting.
Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OptimizerName: TypeAlias = Literal["adam", "sgd"]


@runtime_checkable
class Task(Protocol):
    """A network, its data and its scores.

    Tasks are sent to other processes: make them picklable, and load data lazily.

    A task may also have ``mode``, ``"min"`` or ``"max"``, the direction of its objective. It is required if the name of
    the objective doesn't imply it (names like ``loss``, ``mse``, ``val_error`` and ``accuracy`` do).

    It may have ``shifts``, the names of additional splits that ``score`` accepts: out-of-distribution test data. Scores
    are cached as long as the task's code, its data and the files that it opens in Python are unchanged. A task that
    reads files by other means declares them in ``files``, paths or a method that returns them. A task whose data takes
    long to read may define ``fingerprint(split)``, a text that changes with the data.

    It may have ``part(index, parts)``, which returns the task with every ``parts``-th example of the validation split,
    from ``index`` on: searches then score candidates on few examples first, and estimate the noise of a gain.

    It may have ``logits(module, batch)``, which returns the logits of a batch, ``(n, classes)``, if they aren't the
    output of the network: with a head of the task's own, for example. ``adamerging`` takes their entropy.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> isinstance(task, ws.Task)
        True
        >>> task.name, task.objective
        ('digits-mlp', 'accuracy')
        >>> network = task.network()
        >>> sorted(task.score(network, split="test"))
        ['accuracy', 'loss']
    """

    @property
    def name(self) -> str:
        """Name of the task in tables and plots."""
        ...

    @property
    def objective(self) -> str:
        """Name of the score that soups and searches optimise, a key of the result of ``score``."""
        ...

    @property
    def example_args(self) -> ExampleInputs:
        """Inputs of one forward pass, for tracing and verifying the network: a tuple, or a mapping by name."""
        ...

    def network(self) -> nn.Module:
        """Return a new network on every call, with weights drawn from torch's global generator."""
        ...

    def score(self, module: nn.Module, split: Split = "test") -> Mapping[str, float]:
        """Return ``loss``, ``accuracy`` if defined, and any other figures over a whole split.

        The module is evaluated in inference mode (no dropout, BatchNorm's running statistics) and left unchanged.
        """
        ...

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Return the batches of a split: for training, shuffled (and augmented) by the seed; otherwise in order."""
        ...

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of one batch, a differentiable scalar; the module keeps its mode."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """Configuration of ``train``: by default Adam without weight decay.

    ``optimizer`` is ``"adam"`` or ``"sgd"``, the latter with a momentum of .9; ``weight_decay`` times the weights is
    added to their gradients.

    The learning rate is constant, or with ``cooldown`` decreases linearly by epoch: over 5 epochs, it is multiplied by
    1, .8, .6, .4 and .2.

    A task may have one as ``recipe``. Small networks need only one thread: two are 5 to 10 times slower below a width
    of 1,000. ``threads`` applies to training and scoring; None keeps torch's setting.
    """

    epochs: int = 25
    learning_rate: float = 1e-3
    cooldown: bool = False
    threads: int | None = 1
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0


def threads_of(task: Task) -> int | None:
    """Return the number of threads in the task's recipe, or None if it has no recipe or doesn't set it."""
    return getattr(getattr(task, "recipe", None), "threads", None)


def objective_value(task: Task, scores: Mapping[str, float], mode: Mode | None = None) -> float:
    """Return the task's objective from its scores, with the sign such that larger is better.

    Args:
        task: has the objective, and optionally a ``mode``.
        scores: scores of the task.
        mode: ``"min"`` negates; by default inferred from the task or the name of its objective.

    Raises:
        WeightspaceError: the scores lack the objective, or its direction is unknown.
    """
    name = task.objective
    if name not in scores:
        raise WeightspaceError(
            f"Task {task.name!r} has the objective {name!r}, but its scores are {', '.join(scores) or 'none'}."
        )
    return -scores[name] if task_mode(task, mode) == "min" else scores[name]
