"""CLIP models of open_clip: building, loading, and zero-shot classifiers from their text tower.

This is the only module that imports open_clip, on first use. A model is given by its name in open_clip (``ViT-B-32``)
or by the path of a configuration, ``mine.json``, whose weights are random unless given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Number of texts in a batch of the text tower.
_TEXTS_AT_ONCE = 512


class Pixels(NamedTuple):
    """Input of an image tower: square images of ``size`` pixels, normalised by ``mean`` and ``std`` per channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_clip(name: str, *, weights: str | None = None, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a CLIP model in evaluation mode, in float32, on the CPU.

    Args:
        name: a model of open_clip, or a configuration, ``FILE.json``.
        weights: file of pretrained weights, or a tag of open_clip (``openai``), which open_clip downloads; None draws
            random weights from torch's global generator.
        options: further arguments of ``open_clip.create_model``.

    Raises:
        WeightspaceError: open_clip isn't installed, or the model, file or tag doesn't exist.
    """
    open_clip, known = _open_clip(), known_name(name)
    if weights is not None and not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(known)
        if weights not in tags:
            raise unknown(f"pretrained weights of {name}", weights, [*tags, "a file"])
    try:
        with _silent():
            return open_clip.create_model(known, pretrained=weights, **(options or {})).eval()
    except Exception as error:  # open_clip may raise anything for a wrong option or file
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(f"open_clip:{name} cannot be built: {type(error).__name__}: {line}") from error


def known_name(name: str) -> str:
    """Return the name of a model in open_clip, after registering the configuration if it is a file.

    Raises:
        WeightspaceError: open_clip isn't installed, or doesn't have such a model.
    """
    open_clip = _open_clip()
    if Path(name).suffix == ".json":
        if not Path(name).is_file():
            raise WeightspaceError(
                f"There is no file {name}. Expected a configuration of open_clip, or the name of a model."
            )
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    if name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    return name


def image_size(name: str) -> int:
    """Return the side length of a model's input images, in pixels, without building it.

    Raises:
        WeightspaceError: open_clip isn't installed, or doesn't have such a model.
    """
    config = _open_clip().get_model_config(known_name(name))
    size = config["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def pixels_of(model: Any) -> Pixels:
    """Return the input specification of a model's image tower."""
    open_clip, visual = _open_clip(), model.visual
    size = visual.image_size
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return Pixels(size if isinstance(size, int) else size[0], tuple(mean), tuple(std))


def tokens(name: str, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts for a model's text tower, ``(n, context)``, int64."""
    with _silent():
        return _open_clip().get_tokenizer(known_name(name))(list(texts))


def zero_shot_head(name: str, model: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the weights of a linear classifier on normalised image features, computed from text alone.

    A class is the mean of the normalised features of its name in every template, normalised again and multiplied by the
    model's logit scale, so the outputs are logits.

    Args:
        name: name of the model, for its tokenizer.
        model: CLIP, with ``encode_text`` and ``logit_scale``.
        class_names: in the order of the classes.
        templates: texts with ``{}`` in place of the name: ``"a photo of a {}."``.

    Returns:
        float32 of shape ``(classes, features)``.

    Raises:
        WeightspaceError: a template has no ``{}``, or there are no classes or templates.

    Source:
        Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4; as a head to fine-tune: Wortsman et al.
        2022, https://arxiv.org/abs/2109.01903.
    """
    if not class_names or not templates:
        raise WeightspaceError(
            f"Found {len(class_names)} class names and {len(templates)} templates; expected at least one of each."
        )
    if bad := [template for template in templates if "{}" not in template]:
        raise WeightspaceError(f"Template {bad[0]!r} has no {{}}; expected a text such as 'a photo of a {{}}.'.")
    texts = [template.replace("{}", class_name) for class_name in class_names for template in templates]
    with torch.no_grad():
        features = [model.encode_text(part) for part in tokens(name, texts).split(_TEXTS_AT_ONCE)]
        each = nn.functional.normalize(torch.cat(features).float(), dim=-1)
        means = each.view(len(class_names), len(templates), -1).mean(dim=1)
        return nn.functional.normalize(means, dim=-1) * model.logit_scale.exp()


def _open_clip() -> Any:
    try:
        import open_clip
    except Exception as error:  # an installed package can be broken
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(
            f'open_clip cannot be imported ({type(error).__name__}: {line}); pip install "weightspace[clip]"'
        ) from error
    return open_clip


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress open_clip's warnings on the root logger, and its installation of a handler."""
    before, handler = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)
