"""The recipe of all claims on digits, and the networks it makes: each trained once and kept on disk.

A network is kept under a name that is made of everything that decides its weights, so that another recipe never finds
it, and scripts that run side by side share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask, Examples, Split, TrainConfig, blank_network
from weightspace.tasks.classification import add_noise
from weightspace.zoo.architectures import mlp
from weightspace.zoo.digits import digits_examples
from weightspace.zoo.language_task import LanguageTask

BuiltInTask: TypeAlias = ClassificationTask | LanguageTask

#: Units of each hidden layer, if nothing else is said.
WIDTH = 128
RECIPE = TrainConfig(epochs=30, learning_rate=1e-3)
NOISE = 0.1
#: The first of the seeds that results are kept for, if nothing else is said. Recipe, widths and the settings of the
#: estimators were chosen by networks of smaller seeds; those from here on had no part in that.
FIRST_SEED = 1000
#: Where networks are kept, if nothing else is said.
CACHE = Path(__file__).parent / ".cache"


def digits_pixels() -> Mapping[Split, Examples]:
    """Return the digits with pixels from 0 to 1."""
    splits = digits_examples()
    low, high = splits["train"].inputs.aminmax()
    return {name: Examples((split.inputs - low) / (high - low), split.labels) for name, split in splits.items()}


def digits_task(
    width: int = WIDTH,
    *,
    recipe: TrainConfig = RECIPE,
    noise: float = NOISE,
    load: Callable[[], Mapping[Split, Examples]] = digits_pixels,
    note: str = "",
) -> ClassificationTask:
    """Return the task of the claims on digits: an MLP 64-w-w-w-10 with ReLU, batches of 64 images of 8×8 pixels.

    Args:
        width: units of each hidden layer.
        recipe: how it is trained; by default 30 epochs of Adam, learning rate 1e-3, no weight decay.
        noise: standard deviation of the noise on the pixels, which go from 0 to 1, in training.
        load: the examples, if not all digits.
        note: is appended to the name, ``digits-mlp-WIDTH``.
    """
    return ClassificationTask(
        name=f"digits-mlp-{width}{note and '-'}{note}",
        build=partial(mlp, 64, (width, width, width), 10),
        load=load,
        batch_size=64,
        augment=partial(add_noise, std=noise),
        recipe=recipe,
    )


def seed_groups(count: int, size: int = 2, *, first: int = FIRST_SEED) -> list[range]:
    """Return the seeds of that many pairs (triples, sets) of networks; no network is in two of them."""
    return [range(start, start + size) for start in range(first, first + count * size, size)]


def label_of(seeds: Sequence[int]) -> str:
    """Return the label of the row of a pair (triple, set) of networks."""
    return ", ".join(map(str, seeds))


def trained(task: BuiltInTask, seed: int, *, cache: Path = CACHE) -> ws.StateDict:
    """Return the network of a task and a seed: from the cache, or trained now and kept there.

    Several processes may ask at once: one trains, the others wait for it.
    """
    return ws.load_checkpoint(trained_path(task, seed, cache=cache))


def trained_path(task: BuiltInTask, seed: int, *, cache: Path = CACHE) -> Path:
    """Return the file in which ``trained`` keeps a network, after training it if it isn't there."""
    text = json.dumps([description(task), _data_digest(task), seed], sort_keys=True)
    path = cache / f"{task.name}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    with _alone(path):
        if not path.exists():
            ws.save_checkpoint(ws.train(task, seed), path)
    return path


def description(task: BuiltInTask) -> dict[str, Any]:
    """Return what decides the weights of a task's networks, but data and seed, as plain data for the output."""
    return {
        "task": task.name,
        "network": str(blank_network(task)).splitlines(),
        "batch_size": task.batch_size,
        "augmentation": _named(_augmentation(task)),
        **asdict(task.recipe),
        "torch": torch.__version__,
        "weightspace": ws.__version__,
    }


def summary(task: BuiltInTask) -> str:
    """Return the recipe as one line, for the head of a table."""
    recipe = task.recipe
    rate = f"{recipe.learning_rate:g}" + (", falling" if recipe.cooldown else "")
    return (
        f"{task.name}: {recipe.optimizer}, learning rate {rate}, weight decay {recipe.weight_decay:g}, "
        f"{recipe.epochs} epochs, batches of {task.batch_size}, augmentation {_named(_augmentation(task))}, "
        f"{recipe.threads} torch thread"
    )


def _augmentation(task: BuiltInTask) -> Callable[..., Any] | None:
    return task.augment if isinstance(task, ClassificationTask) else None


def _named(function: Callable[..., Any] | None) -> str:
    """Return the name of a function with the options that are bound to it."""
    if not isinstance(function, partial):
        return function.__qualname__ if function else "none"
    bound = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
    return f"{function.func.__qualname__}({', '.join(bound)})"


def _data_digest(task: BuiltInTask) -> str:
    """Return a digest of the examples that are trained on."""
    digest = hashlib.sha256()
    parts = task.examples["train"] if isinstance(task, ClassificationTask) else [task.sequences["train"]]
    for part in parts:
        digest.update(part[:].contiguous().numpy().data)
    return digest.hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file: other processes wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
