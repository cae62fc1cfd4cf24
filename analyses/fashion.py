"""Weight matching connects wide networks on Fashion-MNIST, and hardly shortens the distance between them.

Ainsworth et al. (https://arxiv.org/abs/2209.04836) state the first, Ito, Yamada and Kumagai
(https://arxiv.org/abs/2402.04051) the second, and what happens instead: the singular vectors of large singular values
come to lie along each other.

    python analyses/fashion.py              # five pairs, some four minutes
    python analyses/fashion.py --pairs 2    # a quick look
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pairs import pair_rows
from recipe import label_of, trained
from report import Gate, Row, script

import weightspace as ws
from weightspace.plots import draw_alignment
from weightspace.spectra import alignments, spectrum
from weightspace.zoo.fashion import fashion_mlp

POINTS = 11
GAMMAS = [step / 20 for step in range(20)]
GATES = (
    Gate("Weight matching connects", "matched / naive", "≤", 0.05),
    Gate("… but hardly shortens the distance", "L2 reduction", "<", 0.35),
    Gate("Unmatched networks share no singular vectors", "R_.3 before", "<", 0.1),
    Gate("Matched ones share those of large values", "R_.3", ">", 0.3),
)


def rows(pairs: Sequence[range], cache: Path) -> Iterator[tuple[str, Row]]:
    """Measure pairs of networks of these seeds."""
    return pair_rows(fashion_mlp(), pairs, points=POINTS, cache=cache)


def draw(seeds: range, cache: Path, folder: Path) -> None:
    """Draw R against γ for a pair, before and after weight matching."""
    task = fashion_mlp()
    target, source = (trained(task, seed, cache=cache) for seed in seeds)
    spec = ws.derive_spec(task.network(), task.example_args)
    permuted = ws.permute(spec, ws.weight_matching(spec, target, source).permutation, source)
    base = spectrum(target, spec=spec)
    ends = {"unmatched": source, "matched": permuted}
    curves = {label: alignments(base, spectrum(end, spec=spec), GAMMAS) for label, end in ends.items()}
    draw_alignment(curves, folder / "fashion_alignment.png", title=f"{task.name}, seeds {label_of(seeds)}")


if __name__ == "__main__":
    script("fashion", __doc__, task=fashion_mlp(), rows=rows, gates=GATES, draw=draw)()
