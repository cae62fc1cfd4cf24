"""``weightspace labels predict`` and ``evaluate``: decode logits or probabilities to labels, and score them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo, plain, print_table, warn
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace import LabelMetric
    from weightspace.labels import TemperatureFit
    from weightspace.labels.results import Predictions

#: Number of labels listed in a summary.
_MOST_OFTEN = 5
#: Tolerance of the sum of float16 probabilities.
_CLOSE = 1e-2

Command = Callable[..., Any]


def _shared(command: Command) -> Command:
    """Add the options that both commands share."""
    decorators = (
        click.argument("metric", metavar="METRIC"),
        click.argument("scores", metavar="SCORES"),
        click.option("--observed", metavar="NAMES", required=True, help="The classes, in the order of the columns."),
        click.option(
            "--outputs",
            metavar="NAMES",
            default="all",
            show_default=True,
            help="Labels to predict from: all, observed, or names.",
        ),
        click.option("--exponent", type=float, default=2.0, show_default=True, help="Exponent of the distance."),
        click.option("--logits", is_flag=True, help="SCORES are logits: apply the softmax first."),
        click.option("--temperature", type=float, help="Temperature to divide the logits by. [1]"),
        click.option("--key", metavar="NAME", help="Name of the array in an .npz or .safetensors."),
        options.header,
        options.device("Device to compute costs on"),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


@commands.command("predict")
@_shared
@options.output("Write the table (.csv, .json) or the ids (.npy) to a file.", required=False, kind="file")
@options.as_json
def predict(metric: str, scores: str, output: str | None, as_json: bool, **given: Any) -> None:
    """Print the label of minimum expected cost for every row of SCORES (.npy, .npz, .safetensors or .csv).

    With -o, write the labels to a file and print a summary.

    \b
    Examples:
      weightspace labels predict tree.safetensors probabilities.npy --observed classes.txt
      weightspace labels predict tree.safetensors logits.npy --logits --observed cat,dog,car -o predicted.csv
    """
    from weightspace.labels.results import Predictions

    options.check_apart(output, metric, scores, given["observed"], given["outputs"])
    space, observed, outputs, p = read_probabilities(metric, scores, given)
    found = Predictions.of(space, p, observed=observed, outputs=outputs, exponent=given["exponent"])
    if output is not None:
        found.save(output)
    if as_json:
        echo_report(plain(found), output=output, files=files_of(output))
        return
    if output is not None:
        for line in _summary(found, len(space)):
            echo(line)
        echo_files(files_of(output))
        return
    rows = zip(found.ids, found.names, found.expected_cost, strict=True)
    head = ("row", "id", "label", "expected cost")
    print_table(head, [(str(row), str(i), str(name), f"{cost:.6g}") for row, (i, name, cost) in enumerate(rows)])
    echo_files(files_of(output))


def _summary(found: Predictions, labels: int) -> list[str]:
    """Return the number of rows and the most frequent predictions."""
    counts = Counter(found.names)
    mean = sum(found.expected_cost) / max(1, len(found.names))
    most = ", ".join(f"{name} {count / len(found.names):.1%}" for name, count in counts.most_common(_MOST_OFTEN))
    rest = ", …" if len(counts) > _MOST_OFTEN else ""
    return [
        f"{len(found.names):,} rows, {len(counts):,} of {labels:,} labels predicted; mean expected cost {mean:.4g}",
        *([f"most frequent: {most}{rest}"] if counts else []),
    ]


@commands.command("evaluate")
@_shared
@click.option("--truth", metavar="NAMES", required=True, help="True label of every row.")
@click.option("--validation", metavar="SCORES", help="Logits to fit the temperature on, instead of --temperature.")
@click.option("--validation-truth", metavar="NAMES", help="True labels of the validation logits.")
@options.output("Plot of reliability and temperatures (.png, .svg, .pdf); logits only.", required=False, kind="file")
@options.as_json
def evaluate(
    metric: str,
    scores: str,
    truth: str,
    validation: str | None,
    validation_truth: str | None,
    output: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare argmax, the Fréchet mean and the best constant label, and recommend one.

    \b
    Examples:
      weightspace labels evaluate tree.safetensors test.npy --logits --observed classes.txt --truth test.txt
      weightspace labels evaluate tree.safetensors test.npy --logits --observed classes.txt --truth test.txt \\
          --validation val.npy --validation-truth val.txt -o temperature.png
    """
    from weightspace.labels import decision_report
    from weightspace.labels.inputs import read_array, read_labels
    from weightspace.plots import draw_calibration

    options.check_apart(
        output, metric, scores, given["observed"], given["outputs"], truth, validation, validation_truth
    )
    if (validation is None) != (validation_truth is None):
        raise WeightspaceError("--validation and --validation-truth go together; found only one of them.")
    if (validation is not None or output is not None) and not given["logits"]:
        raise WeightspaceError(
            "A temperature applies to logits: give them, or the logarithms of probabilities, as SCORES, with --logits."
        )
    _check_order(metric, scores)
    fit = None
    if validation is not None and validation_truth is not None:
        fit = _fitted(metric, validation, validation_truth, given)
        given["temperature"] = fit.temperature
    space, observed, outputs, p = read_probabilities(metric, scores, given)
    names = read_labels(truth, space.labels)
    chosen = {"metric": space, "observed": observed, "outputs": outputs, "exponent": given["exponent"]}
    report = decision_report(p, names, **chosen)
    if output is not None:
        logits = read_array(scores, given["key"], header=given["header"])
        draw_calibration(logits, names, output, temperature=given["temperature"], **chosen)
    if as_json:
        content = {**plain(report), "keep_argmax": report.keep_argmax, "advice": report.advice}
        echo_report({**content, "temperature": fit}, output=output, files=files_of(output))
        return
    if fit is not None:
        echo(f"temperature {fit.temperature:.4g}, fitted on {Path(validation or '').name}")
        echo()
    rows = {"argmax": report.argmax, "Fréchet mean": report.frechet, f"always {report.constant_label}": report.constant}
    table = [(name, f"{s.squared_distance:.4g}", f"{s.distance:.4g}", f"{s.accuracy:.1%}") for name, s in rows.items()]
    print_table(("decision", "mean d²", "mean d", "accuracy"), table)
    for line in ("", report.advice):
        echo(line)
    echo_files(files_of(output))


def _check_order(metric: str, scores: str) -> None:
    """Raise if METRIC and SCORES are swapped."""
    from weightspace.labels.files import is_metric

    if is_metric(scores) and not is_metric(metric):
        raise WeightspaceError(
            f"METRIC and SCORES look swapped: {scores} is a label metric and {metric} isn't. Expected the metric first."
        )


def _fitted(metric: str, validation: str, truth: str, given: dict[str, Any]) -> TemperatureFit:
    """Return the temperature fitted to the validation logits."""
    from weightspace.labels import fit_temperature
    from weightspace.labels.inputs import read_array, read_labels

    if given["temperature"] is not None:
        raise WeightspaceError("--temperature sets what --validation fits. Give one of the two.")
    space, observed, outputs = _classes(metric, given)
    logits = read_array(validation, given["key"], header=given["header"])
    names, exponent = read_labels(truth, space.labels), given["exponent"]
    return fit_temperature(logits, names, metric=space, observed=observed, outputs=outputs, exponent=exponent)


def _classes(metric: str, given: dict[str, Any]) -> tuple[LabelMetric, list[Any], Any]:
    """Return the metric, the observed classes and the outputs."""
    from weightspace import LabelMetric
    from weightspace.labels.inputs import read_labels

    space, outputs = LabelMetric.load(metric), given["outputs"]
    named = outputs if outputs in ("all", "observed") else read_labels(outputs, space.labels)
    return space, read_labels(given["observed"], space.labels), named


def read_probabilities(metric: str, scores: str, given: dict[str, Any]) -> tuple[LabelMetric, list[Any], Any, Any]:
    """Return the metric, the observed classes, the outputs and the probabilities, on the chosen device."""
    from weightspace.devices import check_device
    from weightspace.labels.headers import check_columns
    from weightspace.labels.inputs import read_array, read_header
    from weightspace.labels.probabilities import UNNORMALISED, as_tensor
    from weightspace.labels.results import probabilities_of

    check_device(given["device"])
    _check_order(metric, scores)
    space, observed, outputs = _classes(metric, given)
    found = read_array(scores, given["key"], header=given["header"])
    if given["header"] is not False:
        check_columns(read_header(scores), observed, scores)
    if given["logits"]:
        if (note := _probabilities_note(found)) is not None:
            warn(f"{scores}: {note}")
        probabilities = probabilities_of(found, len(observed), given["temperature"])
        return space, observed, outputs, probabilities.to(given["device"])
    if given["temperature"] is not None:
        raise WeightspaceError("--temperature applies to logits: add --logits if SCORES are logits.")
    if (note := _row_sums_note(found)) is not None:
        warn(f"{scores}: {note}")
        warnings.filterwarnings("ignore", message=UNNORMALISED)  # said once
    return space, observed, outputs, as_tensor(found, scores).to(given["device"])


def _row_sums_note(probabilities: Any) -> str | None:
    """Return a warning about rows of ``(n, K)`` that don't sum to one, or None."""
    import numpy as np

    from weightspace.labels.probabilities import as_tensor

    rows = as_tensor(probabilities, "Probabilities")
    if rows.dim() != 2 or not rows.numel():
        return None
    sums = rows.double().sum(1).cpu().numpy()
    bad = np.flatnonzero(~(np.abs(sums - 1) <= _CLOSE))
    if not len(bad):
        return None
    return (
        f"{len(bad):,} of {len(sums):,} rows do not sum to one (row {int(bad[0]):,}: {sums[bad[0]]:.4g}) and are "
        "divided by their sums. If these are logits, add --logits."
    )


def _probabilities_note(logits: Any) -> str | None:
    """Return a warning if logits ``(n, K)`` look like probabilities: non-negative, with rows that sum to one."""
    from weightspace.labels.probabilities import as_tensor

    rows = as_tensor(logits, "Logits")
    if rows.dim() != 2 or not rows.numel() or bool((rows < 0).any()) or _row_sums_note(rows) is not None:
        return None
    return "all rows look like probabilities: non-negative, and they sum to one. Leave out --logits?"
