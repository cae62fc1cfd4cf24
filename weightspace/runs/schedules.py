"""Weights of the checkpoints of a run in their average.

A learning-rate decay over the last steps corresponds to an average: if it multiplies the updates between ``k + 1``
checkpoints by ``1 ≥ w_1 ≥ … ≥ w_k ≥ 0`` and changes nothing else, the run ends at the average with weights
``1 − w_1, w_1 − w_2, …, w_k`` (WSM, https://arxiv.org/abs/2507.17634).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import read_json
from weightspace.errors import WeightspaceError
from weightspace.suggestions import closest

#: Name of a decay -> its factor as a function of the position in the window, 1 at 0 and 0 at 1.
DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    "1-sqrt": lambda part: 1 - math.sqrt(part),
}

#: All forms of a schedule, for help texts and errors.
FORMS = ("uniform", "ema:DECAY", *(f"wsm:{name}" for name in DECAYS), "FILE")


def schedule_weights(schedule: str, count: int) -> tuple[float, ...]:
    """Return the weights of checkpoints, from the earliest to the latest; they sum to 1, except those of a file.

    Args:
        schedule: ``uniform``; ``ema:DECAY``, the exponential moving average
            ``m ← DECAY · m + (1 − DECAY) · checkpoint`` from the earliest; ``wsm:linear``, ``wsm:cosine`` or
            ``wsm:1-sqrt``, the average that approximates a learning-rate decay over the window, evaluated at
            ``j / count`` for the ``j``-th update; or a ``.json`` or text file with one number per checkpoint.
        count: number of checkpoints.

    Raises:
        CheckpointError: a JSON file cannot be read.
        WeightspaceError: unknown schedule, a decay outside 0 to 1, or a file without one number per checkpoint.

    Source:
        Kaddour 2022, https://arxiv.org/abs/2209.14981 (uniform); Li et al. 2025,
        https://arxiv.org/abs/2505.12082 (uniform, exponential); Tian et al. 2025, https://arxiv.org/abs/2507.17634.

    Example:
        >>> from weightspace.runs import schedule_weights
        >>> schedule_weights("wsm:linear", 4)
        (0.25, 0.25, 0.25, 0.25)
        >>> schedule_weights("ema:0.5", 3)
        (0.25, 0.25, 0.5)
    """
    kind, _, value = schedule.partition(":")
    if schedule == "uniform":
        return (1 / count,) * count
    if kind == "ema" and value:
        return _moving_average(value, count)
    if kind == "wsm" and value in DECAYS:
        return decay_weights([DECAYS[value](number / count) for number in range(1, count)])
    if Path(schedule).is_file():
        return _of_file(Path(schedule), count)
    guess = closest(schedule, FORMS)
    raise WeightspaceError(
        f"Unknown schedule {schedule!r}: expected {', '.join(FORMS[:-1])} or an existing file of weights."
        + ("" if guess is None else f" Did you mean {guess!r}?")
    )


def decay_weights(factors: Sequence[float]) -> tuple[float, ...]:
    """Return the weights of ``k + 1`` checkpoints for ``k`` factors of the updates between them."""
    bounds = (1.0, *factors, 0.0)
    return tuple(bounds[at] - bounds[at + 1] for at in range(len(bounds) - 1))


def _moving_average(text: str, count: int) -> tuple[float, ...]:
    """Return the weights of an exponential moving average that starts at the first checkpoint."""
    try:
        decay = float(text)
    except ValueError:
        decay = math.nan
    if not 0 <= decay < 1:
        raise WeightspaceError(f"Schedule 'ema:{text}': expected a decay from 0 to below 1, such as ema:0.9.")
    return tuple((1 - decay if number else 1.0) * decay ** (count - 1 - number) for number in range(count))


def _of_file(path: Path, count: int) -> tuple[float, ...]:
    """Return the numbers in a file."""
    if path.suffix.lower() == ".json":
        listed = read_json(path)
    else:
        listed = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        listed = [line for line in listed if line]
    expected = f"expected {count} numbers, one per checkpoint, from the earliest to the latest"
    if not isinstance(listed, list) or len(listed) != count:
        found = f"{len(listed)} entries" if isinstance(listed, list) else "no list"
        raise WeightspaceError(f"{path}: found {found}; {expected}.")
    weights = tuple(map(_number, listed))
    for entry, weight in zip(listed, weights, strict=True):
        if not math.isfinite(weight):
            raise WeightspaceError(f"{path}: found {str(entry)[:80]!r}; {expected}.")
    if abs(sum(weights)) <= 1e-12 * sum(map(abs, weights)):
        raise WeightspaceError(f"{path}: the weights sum to 0, so the average is undefined.")
    return weights


def _number(entry: Any) -> float:
    """Return an entry of a file of weights as a number, NaN if it is none."""
    try:
        return math.nan if isinstance(entry, bool) else float(entry)
    except (TypeError, ValueError, OverflowError):
        return math.nan
