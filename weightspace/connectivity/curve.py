"""A curve: the scores of the networks on a way between two, which saves and loads itself.

Losses are in nats, accuracies shares of 1; position 0 is the network ``a``, position 1 the network ``b``.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.disk import replacing_file
from weightspace.errors import WeightspaceError

_COLUMNS = ("position", "loss", "accuracy", "split", "statistics", "name")
_FIELDS = ("positions", "loss", "accuracy", "split", "statistics", "name")


@dataclass(frozen=True)
class Curve:
    """Scores at ``S`` positions on the way from ``a`` to ``b``.

    Attributes:
        positions: without unit, of length ``S``.
        loss: in nats, of length ``S``.
        accuracy: shares, of length ``S``; None where the task has none.
        split: the data that were scored: train, validation or test.
        statistics: ``"reset"`` if BatchNorm's statistics were reset between the ends, else ``"none"``.
        name: of the task.

    Raises:
        WeightspaceError: the lengths differ.
    """

    positions: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None = None
    split: str = "test"
    statistics: str = "none"
    name: str = ""

    def __post_init__(self) -> None:
        accuracies = len(self.positions) if self.accuracy is None else len(self.accuracy)
        if not len(self.positions) == len(self.loss) == accuracies:
            raise WeightspaceError(
                f"A curve has one score a position; found {len(self.positions)} positions, "
                f"{len(self.loss)} losses and {accuracies} accuracies."
            )

    def save(self, path: str | Path) -> None:
        """Write the curve as ``.csv`` (a row a position) or ``.json``; :meth:`load` gives back an equal one.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        path = Path(path)
        text = self._csv() if _suffix(path) == ".csv" else json.dumps(asdict(self), indent=2) + "\n"
        with replacing_file(path) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Read a curve that :meth:`save` wrote.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a curve.
        """
        path = Path(path)
        read = _from_csv if _suffix(path) == ".csv" else _from_json
        try:
            return read(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise WeightspaceError(f"{path} cannot be read: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise WeightspaceError(
                f"{path} isn't a curve ({error}); expected {', '.join(_COLUMNS)} as Curve.save writes them."
            ) from error

    def _csv(self) -> str:
        """Return a row a position, every row complete in itself."""
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(_COLUMNS)
        accuracy = self.accuracy or ("",) * len(self.positions)
        for scores in zip(self.positions, self.loss, accuracy, strict=True):
            writer.writerow([*scores, self.split, self.statistics, self.name])
        return lines.getvalue()


def _suffix(path: Path) -> str:
    """Return the suffix that decides the format."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise WeightspaceError(f"A curve is a .csv or a .json file; found {path.name!r}.")
    return suffix


def _from_json(text: str) -> Curve:
    """Return the curve in the text of a JSON file."""
    fields: dict[str, Any] = json.loads(text)
    accuracy = fields["accuracy"]
    return Curve(
        positions=tuple(map(float, fields["positions"])),
        loss=tuple(map(float, fields["loss"])),
        accuracy=None if accuracy is None else tuple(map(float, accuracy)),
        **{name: str(fields[name]) for name in _FIELDS[3:]},
    )


def _from_csv(text: str) -> Curve:
    """Return the curve in the text of a CSV file."""
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise ValueError("no rows")
    accuracy = tuple(float(row["accuracy"]) for row in rows if row["accuracy"])
    return Curve(
        positions=tuple(float(row["position"]) for row in rows),
        loss=tuple(float(row["loss"]) for row in rows),
        accuracy=accuracy or None,
        **{name: rows[0][name] for name in _FIELDS[3:]},
    )
