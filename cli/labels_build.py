"""``weightspace labels build``: a label metric from edges, parents, a matrix, embeddings or WordNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo
from weightspace.cli.reports import echo_files, echo_report

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace import LabelMetric

_SOURCES = ("edges", "parents", "graph", "matrix", "embeddings", "wordnet", "discrete")

#: Option -> the sources it applies to.
_BELONGING = {
    "labels": ("edges", "parents", "graph", "matrix", "embeddings"),
    "metric": ("embeddings",),
    "ancestors": ("wordnet",),
    "folder": ("wordnet",),
    "key": ("matrix", "embeddings"),
    "header": ("edges", "parents", "graph", "matrix", "embeddings"),
}


@commands.command("build")
@click.option("--edges", metavar="FILE", help="Edges of a tree, one name,name[,length] per line.")
@click.option("--parents", metavar="FILE", help="Tree as name,parent[,length], or parent,child with that header.")
@click.option("--graph", metavar="FILE", help="Edges of any connected graph.")
@click.option("--matrix", metavar="FILE", help="Distance matrix (not squared), .npy, .npz, .safetensors or .csv.")
@click.option("--embeddings", metavar="FILE", help="Embeddings, one row per label, .npy, .npz, .safetensors or .csv.")
@click.option("--wordnet", metavar="NAMES", help="Synsets (n02084071, dog.n.01, dog), or all.")
@click.option("--discrete", metavar="NAMES", help="Names that are all equally far apart.")
@click.option("--labels", metavar="NAMES", help="Names of the rows, or of all nodes in numerical order.")
@click.option(
    "--metric",
    type=Choice(["euclidean", "cosine"]),
    default="euclidean",
    show_default=True,
    help="Distance between embeddings.",
)
@click.option("--ancestors", is_flag=True, help="With --wordnet: add all hypernyms as labels.")
@click.option("--folder", metavar="DIR", help="With --wordnet: folder with data.noun and index.noun of WordNet 3.0.")
@click.option("--key", metavar="NAME", help="Name of the array in an .npz or .safetensors.")
@options.header
@options.output("Metric to write (.safetensors).", kind="file")
@options.as_json
def build(output: str, as_json: bool, **given: Any) -> None:
    """Write a label metric to a file.

    \b
    Examples:
      weightspace labels build --parents tree.csv -o tree.safetensors
      weightspace labels build --wordnet imagenet_ids.txt --ancestors -o imagenet.safetensors
      weightspace labels build --embeddings text.npy --labels names.txt --metric cosine -o text.safetensors
    """
    chosen = [name for name in _SOURCES if given[name] is not None]
    if len(chosen) != 1:
        found = " and ".join(f"--{name}" for name in chosen) or "none"
        raise WeightspaceError(
            f"A metric has exactly one source: {', '.join(f'--{s}' for s in _SOURCES)}; found {found}."
        )
    for name, sources in _BELONGING.items():
        if chosen[0] not in sources:
            options.check_effect([name], f"with --{chosen[0]}, only with {', '.join(f'--{s}' for s in sources)}")
    options.check_apart(output, given[chosen[0]], given["labels"], given["folder"])
    metric = _built(chosen[0], given)
    metric.save(output)
    if as_json:
        echo_report({"kind": metric.kind, "labels": len(metric)}, output=output, files=[output])
    else:
        echo(f"{metric.kind}, {len(metric):,} labels")
        echo_files([output])


def _built(source: str, given: dict[str, Any]) -> LabelMetric:
    from weightspace import LabelMetric
    from weightspace.labels.inputs import read_array, read_names, read_pairs

    file, header = given[source], given["header"]
    labels = read_names(given["labels"]) if given["labels"] else None
    if source == "edges":
        return LabelMetric.from_tree(edges=read_pairs(file, header=header), labels=labels)
    if source == "parents":
        return _from_parents(read_pairs(file, header=header, child_first=True), labels)
    if source == "graph":
        return LabelMetric.from_graph(_graph(read_pairs(file, header=header), labels), labels=labels)
    if source == "matrix":
        distances = read_array(file, given["key"], header=header)
        return LabelMetric.from_distance_matrix(distances, labels=labels or [str(i) for i in range(len(distances))])
    if source == "embeddings":
        rows = read_array(file, given["key"], header=header)
        labels = labels or [str(i) for i in range(len(rows))]
        return LabelMetric.from_embeddings(rows, labels=labels, metric=given["metric"])
    if source == "wordnet":
        names = None if file == "all" else read_names(file)
        return LabelMetric.from_wordnet(names, ancestors=given["ancestors"], folder=given["folder"])
    return LabelMetric.discrete(read_names(file))


def _from_parents(rows: list[tuple[Any, ...]], labels: list[str] | None) -> LabelMetric:
    """Return the metric of rows ``(name, parent[, length])``; a root has no parent or is its own."""
    from weightspace import LabelMetric

    edges = [row for row in rows if row[1] not in ("", row[0])]
    labels = labels or list(dict.fromkeys([*(end for row in edges for end in row[:2]), *(row[0] for row in rows)]))
    above: dict[str, list[str]] = {}
    for row in edges:
        above.setdefault(row[0], []).append(row[1])
    if all(len(parents) == 1 for parents in above.values()):
        lengths = {row[0]: row[2] for row in edges if len(row) == 3}
        parents = {**{row[0]: None for row in rows}, **{name: one for name, (one,) in above.items()}}
        return LabelMetric.from_tree(parents, labels=labels, weights=lengths or None)
    if any(len(row) == 3 for row in edges):
        return LabelMetric.from_graph(_graph(edges, labels), labels=labels)
    return LabelMetric.from_tree({**{row[0]: [] for row in rows}, **above}, labels=labels)


def _graph(edges: list[tuple[Any, ...]], labels: list[str] | None) -> Any:
    """Return edges as a graph."""
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(labels or [])
    graph.add_weighted_edges_from((row[0], row[1], row[2] if len(row) == 3 else 1.0) for row in edges)
    return graph
