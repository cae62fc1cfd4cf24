"""Suite of text encoders: the two upper layers of MiniLM, fine-tuned on sentiment in four domains and on glosses.

The fifth task names the part of speech of a WordNet synset from its definition. A head is made of the class means of
the pretrained features and is not trained. The data and the encoder: ``sentiment.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from sentiment import DOMAINS, FOLDER, encoder, read_domain
from suites import HeadedTask, Sizes, Suite, fine_tuned
from torch import Tensor, nn
from wordnet_texts import PARTS_OF_SPEECH, definitions

import weightspace as ws
from weightspace.tasks import Examples, TrainConfig
from weightspace.zoo import Texts
from weightspace.zoo.text_encoder import TextClassifier, frozen_features, text_classifier

FULL = Sizes(training=400, epochs=2, validation=60, test=150)
SMALL = Sizes(training=32, epochs=1, validation=8, test=8)
TRAINED, LENGTH = 2, 24
#: Norm of the rows of a head.
_SCALE = 10.0


def suite(seed: int, sizes: Sizes, cache: Path) -> Suite:
    """Return the suite of a seed, which determines the splits and the fine-tuning."""
    folder = encoder(FOLDER)
    texts = {**{domain: read_domain(domain, FOLDER) for domain in DOMAINS}, "glosses": _glosses()}
    parts = {name: _task(name, whole, folder, seed, sizes, cache) for name, whole in texts.items()}
    return fine_tuned("texts", parts, "accuracy", seed, cache)


def _task(name: str, whole: Texts, folder: Path, seed: int, sizes: Sizes, cache: Path) -> HeadedTask:
    """Return the task of a kind of text."""
    file = _features(name, _drawn(whole, seed, sizes), folder, cache)
    splits = _read(file)
    return HeadedTask(
        name=f"texts-{name}",
        build=partial(_body, folder),
        load=partial(_read, file),
        batch_size=16,
        recipe=TrainConfig(epochs=sizes.epochs, learning_rate=2e-4, cooldown=True),
        head=_head(_body(folder), splits["train"]),
    )


def _glosses() -> Texts:
    """Return definitions of WordNet and the numbers of their parts of speech, as many of each."""
    each = {part: definitions(part) for part in PARTS_OF_SPEECH}
    count = min(len(found) for found in each.values())
    kept = [found[:: len(found) // count][:count] for found in each.values()]
    texts = [text for found in kept for text in found]
    return Texts(texts, torch.arange(len(kept)).repeat_interleave(count))


def _drawn(whole: Texts, seed: int, sizes: Sizes) -> Mapping[str, Texts]:
    """Return the splits, drawn by the seed; in each, short texts come first, which saves padding."""
    order = torch.randperm(len(whole.texts), generator=torch.Generator().manual_seed(seed))
    counts = {"train": sizes.training, "validation": sizes.validation, "test": sizes.test}
    chosen = order[: sum(counts.values())].split(list(counts.values()))
    found = {}
    for split, places in zip(counts, chosen, strict=True):
        ordered = sorted(places.tolist(), key=lambda at: (len(whole.texts[at]), at))
        found[split] = Texts([str(whole.texts[at]) for at in ordered], whole.labels[ordered])
    return found


def _features(name: str, splits: Mapping[str, Texts], folder: Path, cache: Path) -> Path:
    """Return the file of what the frozen layers make of the texts, which is written if it isn't there."""
    text = repr([(split, list(one.texts), one.labels.tolist()) for split, one in splits.items()])
    digest = hashlib.sha256(f"{text} {TRAINED} {LENGTH}".encode()).hexdigest()[:16]
    path = cache / f"texts-{name}-{digest}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {}
        for split, (texts, labels) in splits.items():
            content[f"{split}.inputs"] = frozen_features(folder, texts, trained=TRAINED, length=LENGTH)
            content[f"{split}.labels"] = labels
        ws.save_checkpoint(content, path)
    return path


def _read(file: Path) -> dict[str, Examples]:
    content = ws.load_checkpoint(file)
    return {
        split: Examples(content[f"{split}.inputs"], content[f"{split}.labels"])
        for split in ("train", "validation", "test")
    }


def _body(folder: Path) -> nn.Module:
    """Return the trained layers with pretrained weights, from outputs of the frozen ones to mean features."""
    network: TextClassifier = text_classifier(folder, 1, trained=TRAINED)
    network.head = nn.Identity()  # type: ignore[assignment]
    return network


@torch.no_grad()
def _head(body: nn.Module, examples: Examples) -> Tensor:
    """Return the class means of normalised features, less their mean, at a fixed norm: ``(classes, features)``."""
    features = torch.cat([body.eval()(part) for part in examples.inputs.split(64)])
    features = nn.functional.normalize(features, dim=-1)
    classes = int(examples.labels.max()) + 1
    means = torch.stack([features[examples.labels == label].mean(dim=0) for label in range(classes)])
    return _SCALE * nn.functional.normalize(means - means.mean(dim=0), dim=-1)
