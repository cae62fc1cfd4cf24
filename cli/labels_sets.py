"""``weightspace labels sets``: prediction sets that contain the truth with a given probability."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from weightspace.cli import commands, options
from weightspace.cli.labels_predict import read_probabilities
from weightspace.cli.printing import echo, print_table
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import WeightspaceError

#: Endings of the table.
_TABLES = (".csv", ".json")


@commands.command("sets")
@click.argument("metric", metavar="METRIC")
@click.argument("scores", metavar="SCORES")
@click.option("--observed", metavar="NAMES", required=True, help="The classes, in the order of the columns.")
@click.option("--calibration", metavar="SCORES", required=True, help="Scores of data that training did not use.")
@click.option("--truth", metavar="NAMES", required=True, help="True label of every row of --calibration.")
@click.option(
    "--coverage", type=float, default=0.9, show_default=True, help="Probability that a set contains the truth."
)
@click.option("--nodes", is_flag=True, help="Predict the lowest node of the tree instead of a set of classes.")
@click.option("--root", metavar="NAME", help="Root of the tree (--nodes). [that of labels build --parents]")
@click.option("--logits", is_flag=True, help="SCORES are logits: apply the softmax first.")
@click.option("--temperature", type=float, help="Temperature to divide the logits by. [1]")
@click.option("--key", metavar="NAME", help="Name of the array in an .npz or .safetensors.")
@options.header
@options.output("Write the table (.csv with a row per label, or .json) to a file.", required=False, kind="file")
@options.as_json
def sets(metric: str, scores: str, output: str | None, as_json: bool, **given: Any) -> None:
    """Print a prediction set for every row of SCORES, calibrated on other rows (split conformal prediction).

    \b
    Examples:
      weightspace labels sets tree.safetensors test.npy --observed classes.txt --calibration val.npy --truth val.txt
      weightspace labels sets tree.safetensors test.npy --logits --observed cat,dog,car \\
          --calibration val.npy --truth val.txt --coverage 0.8 --nodes -o nodes.csv
    """
    from weightspace.labels import conformal_labels, conformal_nodes
    from weightspace.labels.inputs import read_labels

    calibration, truth = given["calibration"], given["truth"]
    if output is not None and Path(output).suffix.lower() not in _TABLES:
        raise WeightspaceError(f"Prediction sets must be a {' or '.join(_TABLES)} file; found {Path(output).name!r}.")
    if not given["nodes"]:
        options.check_effect(["root"], "without --nodes")
    options.check_apart(output, metric, scores, given["observed"], calibration, truth)
    reading = {**given, "outputs": "observed", "device": "cpu"}
    space, observed, _, held_out = read_probabilities(metric, calibration, reading)
    _, _, _, probabilities = read_probabilities(metric, scores, reading)
    chosen = {"observed": observed, "coverage": given["coverage"]}
    names = read_labels(truth, space.labels)
    if given["nodes"]:
        root = None if given["root"] is None else read_labels(given["root"], space.labels)[0]
        nodes = conformal_nodes(held_out, names, metric=space, root=root, **chosen)
        found = [[node] for node in nodes.predict(probabilities)]
    else:
        found = conformal_labels(held_out, names, **chosen).predict(probabilities)
    content = {"coverage": given["coverage"], "calibration_rows": len(names), "sets": found}
    if output is not None:
        _write(content, Path(output))
    if as_json:
        echo_report(content, output=output, files=files_of(output))
        return
    if output is None:
        print_table(("row", "labels"), [(str(row), ", ".join(map(str, labels))) for row, labels in enumerate(found)])
    else:
        echo(_summary(found, nodes=given["nodes"]))
    echo_files(files_of(output))


def _summary(found: Sequence[Sequence[Any]], *, nodes: bool) -> str:
    """Return the sizes of the sets, or the most frequent nodes."""
    if nodes:
        counts = Counter(str(labels[0]) for labels in found).most_common(5)
        return f"{len(found):,} rows; most frequent: " + ", ".join(f"{name} {count:,}" for name, count in counts)
    sizes = [len(labels) for labels in found]
    return (
        f"{len(found):,} rows; {sum(sizes) / max(1, len(sizes)):.3g} labels on average, {max(sizes, default=0)} at most"
    )


def _write(content: dict[str, Any], path: Path) -> None:
    """Write the sets: as JSON, or as CSV with a row per label, the most probable first."""
    from weightspace.checkpoints.atomic_write import replacing_file

    lines = io.StringIO()
    if path.suffix.lower() == ".json":
        lines.write(json.dumps(content, ensure_ascii=False) + "\n")
    else:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("row", "label"))
        writer.writerows((row, label) for row, labels in enumerate(content["sets"]) for label in labels)
    with replacing_file(path) as file:
        file.write(lines.getvalue().encode())
