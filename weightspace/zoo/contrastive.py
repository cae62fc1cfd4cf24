"""Pretraining a CLIP model on images with texts, by a contrastive loss.

Fine-tunes share a pretrained model; if none can be downloaded, a small one is trained here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.clip import build_clip, pixels_of, tokens
from weightspace.progress import Progress
from weightspace.tasks.classification import Augmentation
from weightspace.threads import torch_threads
from weightspace.zoo.images import Images

_WARM_UP = 50
_WEIGHT_DECAY = 0.01


def pretrained_clip(
    model: str,
    images: Images | Tensor,
    labels: Tensor,
    captions: Sequence[Sequence[str]],
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    augment: Augmentation | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> nn.Module:
    """Return a CLIP model trained from scratch on images and captions, on one thread.

    Args:
        model: name in open_clip, or ``FILE.json``.
        images: from 0 to 1, ``(n, 1 or 3, size, size)``.
        labels: label of each image, which selects its captions, int64 ``(n,)``.
        captions: the texts of each label, equally many for each; one is drawn per image and step.
        steps: steps of AdamW; the learning rate is warmed up over the first 50, then decays by a cosine to 0.
        batch_size: images per step.
        learning_rate: the peak learning rate.
        augment: augmentation of the images.
        seed: training is bit-reproducible for a fixed seed.
        on_progress: called after every ``"step"``, with its loss in nats.

    Source:
        Radford et al. 2021, https://arxiv.org/abs/2103.00020, figure 3; images that drew the same text share it as
        their target, as in Yang et al. 2022, https://arxiv.org/abs/2204.03610.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch_threads(1):
        torch.manual_seed(seed)
        network: Any = build_clip(model).train()
        colours = pixels_of(network)
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in (colours.mean, colours.std))
        each = len(captions[0])
        texts = tokens(model, [text for label in captions for text in label])
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY)
        for step in range(1, steps + 1):
            optimizer.param_groups[0]["lr"] = learning_rate * _share(step, steps)
            chosen = torch.randint(len(labels), (batch_size,), generator=generator)
            seen = images[chosen] if augment is None else augment(images[chosen], generator)
            drawn = each * labels[chosen] + torch.randint(each, (batch_size,), generator=generator)
            loss = _loss(network, (seen - mean) / std, texts, drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if on_progress is not None:
                on_progress(Progress("step", step, steps, float(loss.detach())))
    return network.eval()


def _share(step: int, steps: int) -> float:
    """Return the learning rate at a step, as a fraction of its peak."""
    return min(1.0, step / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


def _loss(network: Any, images: Tensor, texts: Tensor, drawn: Tensor) -> Tensor:
    """Return the contrastive loss of images and the texts drawn for them; each text is encoded once."""
    features = nn.functional.normalize(network.encode_image(images), dim=-1)
    written = nn.functional.normalize(network.encode_text(texts), dim=-1)[drawn]
    logits = network.logit_scale.exp() * features @ written.T
    same = (drawn[:, None] == drawn[None]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
