"""open_clip models: class embeddings from the text tower, and a zero-shot classifier over a label metric.

The model and its tokenizer are passed in; open_clip itself isn't imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.labels.label_space import LabelSpace, Outputs
from weightspace.labels.names import Label

#: Number of texts encoded at once.
_TEXTS = 256
_TEMPLATES = ("a photo of a {}.",)


@torch.no_grad()
def class_embeddings(model: Any, tokenizer: Any, names: Sequence[str], templates: Sequence[str] = _TEMPLATES) -> Tensor:
    """Return a unit vector for each class, float32 (classes, d): the normalised mean of its normalised text embeddings.

    Args:
        model: model with ``encode_text``; in evaluation mode while it is used.
        tokenizer: texts -> tokens.
        names: class names.
        templates: prompts with ``{}`` for the name.

    Raises:
        WeightspaceError: there are no names or templates, or a template has no ``{}``.

    Source:
        Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4.
    """
    names, templates = list(names), list(templates)
    if not names or not templates:
        raise WeightspaceError(
            f"Found {len(names)} class names and {len(templates)} templates; expected at least one each."
        )
    if bad := next((template for template in templates if "{}" not in template), None):
        raise WeightspaceError(f"The template {bad!r} has no {{}} for the class name.")
    texts = [template.replace("{}", name) for name in names for template in templates]
    training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        parts = [
            model.encode_text(tokenizer(texts[at : at + _TEXTS]).to(device)) for at in range(0, len(texts), _TEXTS)
        ]
    finally:
        model.train(training)
    found = nn.functional.normalize(torch.cat(parts).float(), dim=-1).view(len(names), len(templates), -1)
    return nn.functional.normalize(found.mean(1), dim=-1).cpu()


class ZeroShotClassifier(nn.Module):
    """Zero-shot classifier over a label metric with an open_clip model: images -> positions in the metric's labels.

    Args:
        model: model with ``encode_image``, ``encode_text`` and ``logit_scale``; not modified.
        tokenizer: texts -> tokens.
        metric: label metric.
        observed: names of the observed classes, also used in the prompts.
        templates: as for :func:`class_embeddings`.
        outputs: as for ``metric.predict``.
        exponent: as for ``metric.predict``.
        temperature: divisor of the logits, in addition to the model's own scale.
    """

    classes: Tensor

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        metric: LabelSpace,
        *,
        observed: Sequence[Label],
        templates: Sequence[str] = _TEMPLATES,
        outputs: Outputs = "all",
        exponent: float = 2,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = metric.head(observed=observed, outputs=outputs, exponent=exponent, temperature=temperature)
        embedded = class_embeddings(model, tokenizer, [str(name) for name in observed], templates)
        self.register_buffer("classes", embedded.to(next(model.parameters()).device), persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        """Return scaled cosine similarities, (B, observed)."""
        features = nn.functional.normalize(self.model.encode_image(images), dim=-1)
        bias = getattr(self.model, "logit_bias", None)
        scaled = self.model.logit_scale.exp() * features @ self.classes.to(features.dtype).T
        return scaled if bias is None else scaled + bias

    def forward(self, images: Tensor) -> Tensor:
        """Return positions in ``head.labels``, int64 (B,)."""
        return self.head(self.logits(images))
