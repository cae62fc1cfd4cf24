"""``weightspace labels locus``, ``cover`` and ``next``: the labels that can be predicted from given classes."""

from __future__ import annotations

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo
from weightspace.cli.reports import echo_files, echo_report, files_of

_OBSERVED = click.option("--observed", metavar="NAMES", required=True, help="The classes of the classifier.")


@commands.command("locus")
@click.argument("metric", metavar="METRIC")
@_OBSERVED
@click.option("--unique", is_flag=True, help="Only labels that are the unique mean for some probabilities.")
@options.output(
    "Plot of the locus or of the simplex (--simplex), .png, .svg or .pdf.",
    required=False,
    kind="file",
)
@click.option("--simplex", is_flag=True, help="Plot the predictions for all probabilities of three classes.")
@options.as_json
def locus(metric: str, observed: str, unique: bool, output: str | None, simplex: bool, as_json: bool) -> None:
    """Print the labels that can be predicted from the observed classes.

    \b
    Examples:
      weightspace labels locus tree.safetensors --observed cat,dog -o locus.png
      weightspace labels locus tree.safetensors --observed cat,dog,car --simplex -o simplex.png
    """
    from weightspace import LabelMetric, WeightspaceError
    from weightspace.labels.inputs import read_labels
    from weightspace.plots import draw_locus, draw_simplex

    if simplex and output is None:
        raise WeightspaceError("--simplex needs an output file: give -o, for example -o simplex.png.")
    options.check_apart(output, metric, observed)
    space = LabelMetric.load(metric)
    names = read_labels(observed, space.labels)
    found = space.locus(names, unique=unique)
    if output is not None:
        (draw_simplex if simplex else draw_locus)(space, names, output)
    _show(found, {"labels": len(space), "observed": names}, "locus", as_json, output)


@commands.command("cover")
@click.argument("metric", metavar="METRIC")
@click.option("--identifying", is_flag=True, help="Require every label to be the unique mean for some probabilities.")
@options.as_json
def cover(metric: str, identifying: bool, as_json: bool) -> None:
    """Print a smallest set of classes from which every label can be predicted.

    \b
    Example:
      weightspace labels cover tree.safetensors
    """
    from weightspace import LabelMetric

    space = LabelMetric.load(metric)
    found = space.cover(identifying=identifying)
    facts = {"method": found.method, "exact": found.exact, "lower_bound": found.lower_bound}
    _show(list(found.labels), facts, "cover", as_json)
    if not found.exact:
        echo(f"Found by {found.method}; no cover has fewer than {found.lower_bound:,}.", err=True)


@commands.command("next")
@click.argument("metric", metavar="METRIC")
@_OBSERVED
@click.option("-n", "count", type=int, default=1, show_default=True, help="Number of classes.")
@options.as_json
def next_(metric: str, observed: str, count: int, as_json: bool) -> None:
    """Print the classes to observe next so that the most labels can be predicted.

    \b
    Example:
      weightspace labels next tree.safetensors --observed cat,dog -n 3
    """
    from weightspace import LabelMetric
    from weightspace.labels.inputs import read_labels

    space = LabelMetric.load(metric)
    names = read_labels(observed, space.labels)
    _show(space.next_classes(names, count), {"observed": names}, "next", as_json)


def _show(found: list[object], facts: dict[str, object], name: str, as_json: bool, output: str | None = None) -> None:
    if as_json:
        echo_report({name: found, **facts}, output=output, files=files_of(output))
        return
    for label in found:
        echo(str(label))
    echo_files(files_of(output))
