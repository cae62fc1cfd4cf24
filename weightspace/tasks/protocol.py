"""The ``Task`` protocol: what a user writes once and hands to every command.

Any object with these names is a task; there is nothing to inherit. Losses are in nats, accuracies are shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.symmetry.inputs import ExampleInputs
from weightspace.tasks.objectives import Mode, task_mode

#: ``train`` is what gradients and statistics see, ``validation`` chooses, ``test`` is reported.
Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
OptimizerName: TypeAlias = Literal["adam", "sgd"]


@runtime_checkable
class Task(Protocol):
    """A network, its data and its scores.

    Tasks travel to other processes: make them picklable, and load data when it is first asked for.

    A task may also have ``mode``, ``"min"`` or ``"max"``: whether less or more of its objective is better. It is needed
    where the name does not tell (``loss``, ``mse``, ``val_error``, ``accuracy`` and their like do).

    It may have ``shifts``, the names of further splits that ``score`` takes: test data from elsewhere. Scores
    are kept as long as the task's code, its data and the files that it opens in Python are the same. A task that reads
    files by other means declares them: ``files``, paths or a method that returns them. One whose data take long to read
    says what they are: ``fingerprint(split)``, a text that changes with them.

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
        """What tables and plots call the task."""
        ...

    @property
    def objective(self) -> str:
        """The score that soups and searches improve, by its name in what ``score`` returns."""
        ...

    @property
    def example_args(self) -> ExampleInputs:
        """Inputs of one forward pass, for tracing and verifying the network: a tuple, or a mapping by name."""
        ...

    def network(self) -> nn.Module:
        """Return a new network on every call; its weights are drawn from torch's global generator."""
        ...

    def score(self, module: nn.Module, split: Split = "test") -> Mapping[str, float]:
        """Return ``loss``, ``accuracy`` where there is one, and any other figures, over a whole split.

        The module is evaluated as for use (no dropout, BatchNorm's running statistics) and left as it was.
        """
        ...

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Return the batches of a split: shuffled (and augmented) by the seed in training, else in order."""
        ...

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of one batch, a differentiable scalar; the module stays in its mode."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How ``train`` goes about a task: Adam without weight decay, if nothing else is said.

    ``optimizer`` is ``"adam"`` or ``"sgd"``, which has a momentum of .9; ``weight_decay`` adds that many times the
    weights to their gradients.

    The learning rate is constant, or with ``cooldown`` falls by equal steps, an epoch each: 5 epochs have 1,
    .8, .6, .4 and .2 of it.

    A task may carry one as ``recipe``. Small networks want one thread: two are 5 to 10 times slower below a
    width of 1,000. ``threads`` holds while training and scoring; None keeps torch's own setting.
    """

    epochs: int = 25
    learning_rate: float = 1e-3
    cooldown: bool = False
    threads: int | None = 1
    optimizer: OptimizerName = "adam"
    weight_decay: float = 0.0


def threads_of(task: Task) -> int | None:
    """Return the number of threads that the task's recipe asks for; None if it has no recipe or no wish."""
    return getattr(getattr(task, "recipe", None), "threads", None)


def objective_value(task: Task, scores: Mapping[str, float], mode: Mode | None = None) -> float:
    """Return the task's objective out of its scores, as a number that is better when it is larger.

    Args:
        task: has the objective, and perhaps a ``mode``.
        scores: what the task found.
        mode: ``"min"`` negates; by default the task or the name of its objective tells.

    Raises:
        WeightspaceError: the scores lack the objective, or it is not known whether more of it is better.
    """
    name = task.objective
    if name not in scores:
        raise WeightspaceError(
            f"Task {task.name!r} has the objective {name!r}, but its scores are {', '.join(scores) or 'none'}."
        )
    return -scores[name] if task_mode(task, mode) == "min" else scores[name]
