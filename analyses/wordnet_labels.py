"""Naming unseen classes: glosses of WordNet to hypernyms, with few of the hypernyms observed.

Every noun synset is an item, its gloss the input, its (first) hypernym the label. Of all but the test items, those
whose label is among K observed ones train a classifier: 5 nearest neighbours by the cosine of TF-IDF, their votes
weighted by it. The observed labels are the most frequent ones, or drawn at random. Predictions are compared with the
truth by squared hops between synsets.

    python analyses/wordnet_labels.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from report import HERE, Row, printed, save
from sklearn.feature_extraction.text import TfidfVectorizer

import weightspace as ws
from weightspace.labels import decision_report
from weightspace.labels.wordnet import read_wordnet, wordnet_folder

OBSERVED = (100, 500, 2000)
TEST, NEIGHBOURS = 4000, 5


def rows(observed: tuple[int, ...], test: int, seed: int, choices: tuple[str, ...]) -> Iterator[tuple[str, Row]]:
    """Yield the decisions for every number of observed classes, by every choice of them."""
    wordnet = read_wordnet(wordnet_folder())
    metric = ws.LabelMetric.from_wordnet()
    items, first = np.unique(wordnet.above[:, 0], return_index=True)
    truth = wordnet.above[first, 1]
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(items))
    test_items, training = order[:test], order[test:]
    glosses = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform([wordnet.glosses[i] for i in items])
    classes, counts = np.unique(truth[training], return_counts=True)
    orders = {"frequent": classes[np.argsort(-counts, kind="stable")], "random": rng.permutation(classes)}
    for choice in choices:
        for count in observed:
            seen = np.sort(orders[choice][:count])
            known = training[np.isin(truth[training], seen)]
            p = neighbours(glosses[test_items] @ glosses[known].T, np.searchsorted(seen, truth[known]), count)
            true, names = ([metric.labels[i] for i in which] for which in (truth[test_items], seen))
            report = decision_report(p, true, metric=metric, observed=names)
            yield (
                f"K = {count}, {choice}",
                {
                    "argmax": report.argmax.squared_distance,
                    "Fréchet": report.frechet.squared_distance,
                    "best constant": report.constant.squared_distance,
                    "accuracy of argmax": report.argmax.accuracy,
                    "accuracy of Fréchet": report.frechet.accuracy,
                    "truth observed": report.observed_truth,
                    "training items": float(len(known)),
                },
            )


def neighbours(similarity: object, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the votes of the nearest items, weighted by their similarity; by frequency where nothing is shared."""
    matrix = similarity.tocsr()  # type: ignore[attr-defined]
    votes = np.zeros((matrix.shape[0], classes))
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        near = np.argsort(-matrix.data[part], kind="stable")[:NEIGHBOURS]
        np.add.at(votes[row], labels[matrix.indices[part][near]], matrix.data[part][near])
    votes[votes.sum(1) == 0] = np.bincount(labels, minlength=classes)
    return votes


@click.command(help=f"\b\n{__doc__}")
@click.option("--observed", default=",".join(map(str, OBSERVED)), show_default=True, help="Numbers of classes.")
@click.option("--test", default=TEST, show_default=True, help="Test items.")
@click.option("--seed", default=0, show_default=True)
@click.option("--choice", type=click.Choice(["frequent", "random", "both"]), default="both", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/.")
def main(observed: str, test: int, seed: int, choice: str, output: Path) -> None:
    """Print the table and write the results."""
    torch.set_num_threads(1)
    counts = tuple(int(one) for one in observed.split(","))
    found = printed(rows(counts, test, seed, ("frequent", "random") if choice == "both" else (choice,)), middle=False)
    save("wordnet_labels", {"test items": test, "seed": seed, "classes": choice, "rows": found}, output)


if __name__ == "__main__":
    main()
