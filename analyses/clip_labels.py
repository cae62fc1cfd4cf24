"""Half of the classes hidden from a CLIP, and a metric from its own text tower: an honest table.

A tiny CLIP (3.4 million parameters, trained here for 80 steps) sees images and captions of five classes of
Fashion-MNIST. The label space is all ten, with the chordal distance between their texts' embeddings in that same tower,
of which five were never trained. Scored on the test images of all ten classes, by the metric itself and by accuracy.

    python analyses/clip_labels.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from report import HERE, Row, printed, save
from torch import Tensor, nn

import weightspace as ws
from weightspace.labels import ZeroShotClassifier, decision_report, fit_temperature
from weightspace.zoo.fashion import fashion_examples, fashion_folder

NAMES = (*("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),)
SEEN = ("t-shirt", "trouser", "coat", "sneaker", "bag")
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of the {}.")
CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
TESTED = 2000


def images_of(inputs: Tensor) -> Tensor:
    """Return three channels of 32 pixels."""
    return nn.functional.pad(inputs, (2, 2, 2, 2), value=float(inputs.min())).expand(-1, 3, -1, -1)


def tiny_clip() -> tuple[Any, Any]:
    """Return an untrained model and its tokenizer."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny-clip.json"
        path.write_text(json.dumps(CONFIG))
        open_clip.add_model_config(path)
        model = open_clip.create_model("tiny-clip", pretrained=None)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return model, lambda texts: tokenizer(texts, context_length=16)


def train(model: Any, tokenizer: Any, inputs: Tensor, labels: Tensor, steps: int) -> None:
    """Train on images and captions, each image against the captions of all seen classes."""
    tokens = tokenizer([template.replace("{}", name) for template in TEMPLATES for name in SEEN])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(0, len(inputs), (128,), generator=generator)
        template = int(torch.randint(0, len(TEMPLATES), (1,), generator=generator))
        texts = tokens[template * len(SEEN) : (template + 1) * len(SEEN)]
        images, words, scale = model(images_of(inputs[batch]), texts)[:3]
        loss = nn.functional.cross_entropy(scale * images @ words.T, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows(steps: int) -> Iterator[tuple[str, Row]]:
    """Yield the scores of every decision."""
    torch.manual_seed(0)
    model, tokenizer = tiny_clip()
    splits = fashion_examples(fashion_folder())
    number = {NAMES.index(name): index for index, name in enumerate(SEEN)}
    known = torch.isin(splits["train"].labels, torch.tensor(list(number)))
    labels = torch.tensor([number[int(label)] for label in splits["train"].labels[known]])
    train(model, tokenizer, splits["train"].inputs[known], labels, steps)
    model.eval()
    metric = ws.LabelMetric.from_open_clip(model, tokenizer, NAMES, templates=TEMPLATES)
    classifier = ZeroShotClassifier(model, tokenizer, metric, observed=SEEN, templates=TEMPLATES)
    whole = ZeroShotClassifier(model, tokenizer, metric, observed=NAMES, templates=TEMPLATES)
    logits, every, truth = {}, {}, {}
    with torch.no_grad():
        for split in ("validation", "test"):
            examples = splits[split]  # type: ignore[index]
            images = images_of(examples.inputs[:TESTED])
            logits[split], every[split] = classifier.logits(images), whole.logits(images)
            truth[split] = [NAMES[int(label)] for label in examples.labels[:TESTED]]
    for name, seen, scores in (("5 observed", SEEN, logits), ("all 10 in the texts", NAMES, every)):
        fit = fit_temperature(scores["validation"], truth["validation"], metric=metric, observed=seen)
        for label, temperature in (("T = 1", 1.0), (f"T = {fit.temperature:.2g}, fitted", fit.temperature)):
            p = torch.softmax(scores["test"].double() / temperature, -1)
            report = decision_report(p, truth["test"], metric=metric, observed=seen)
            yield (
                f"{name}, {label}",
                {
                    "argmax": report.argmax.squared_distance,
                    "Fréchet": report.frechet.squared_distance,
                    "best constant": report.constant.squared_distance,
                    "accuracy of argmax": report.argmax.accuracy,
                    "accuracy of Fréchet": report.frechet.accuracy,
                    "hidden classes named": float(
                        np.mean([NAMES[i] not in SEEN for i in metric.predict(p, observed=seen)])
                    ),
                },
            )


@click.command(help=f"\b\n{__doc__}")
@click.option("--steps", default=80, show_default=True, help="Of training.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE, help="Folder of results/.")
def main(steps: int, output: Path) -> None:
    """Print the table and write the results."""
    torch.set_num_threads(1)
    found = printed(rows(steps), middle=False)
    save("clip_labels", {"seen": list(SEEN), "steps": steps, "test images": TESTED, "rows": found}, output)


if __name__ == "__main__":
    main()
