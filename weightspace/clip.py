"""CLIP models of open_clip: built, loaded, and asked for the classifier that their text tower makes of class names.

The only door to open_clip, which is imported when a model is first asked for. A model is named as open_clip names it
(``ViT-B-32``), or by the path of a configuration, ``mine.json``, whose weights are drawn at random unless given.
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

#: Texts that the text tower sees at a time.
_TEXTS_AT_ONCE = 512


class Pixels(NamedTuple):
    """What an image tower is fed: square images of ``size`` pixels, less ``mean`` and over ``std``, a channel each."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_clip(name: str, *, weights: str | None = None, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a CLIP model, in evaluation mode, in float32, on the processor.

    Args:
        name: a model of open_clip, or a configuration, ``FILE.json``.
        weights: file of pretrained weights, or a tag of open_clip (``openai``), which open_clip downloads; None draws
            them from torch's global generator.
        options: further arguments of ``open_clip.create_model``.

    Raises:
        WeightspaceError: open_clip isn't installed, or there is no such model, file or tag.
    """
    open_clip, known = _open_clip(), known_name(name)
    if weights is not None and not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(known)
        if weights not in tags:
            raise unknown(f"pretrained weights of {name}", weights, [*tags, "a file"])
    try:
        with _silent():
            return open_clip.create_model(known, pretrained=weights, **(options or {})).eval()
    except Exception as error:  # whatever open_clip raises at a wrong option or file
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(f"open_clip:{name} cannot be built: {type(error).__name__}: {line}") from error


def known_name(name: str) -> str:
    """Return the name under which open_clip has a model, after telling it about the file if it is one.

    Raises:
        WeightspaceError: open_clip isn't installed, or knows no such model.
    """
    open_clip = _open_clip()
    if Path(name).suffix == ".json":
        if not Path(name).is_file():
            raise WeightspaceError(
                f"There is no file {name}. Expected a configuration of open_clip, or a model's name."
            )
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    if name not in open_clip.list_models():
        raise unknown("open_clip model", name, open_clip.list_models())
    return name


def image_size(name: str) -> int:
    """Return the side of the images that a model takes, in pixels, without building it.

    Raises:
        WeightspaceError: open_clip isn't installed, or knows no such model.
    """
    config = _open_clip().get_model_config(known_name(name))
    size = config["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def pixels_of(model: Any) -> Pixels:
    """Return what the image tower of a model is fed."""
    open_clip, visual = _open_clip(), model.visual
    size = visual.image_size
    mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
    std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
    return Pixels(size if isinstance(size, int) else size[0], tuple(mean), tuple(std))


def tokens(name: str, texts: Sequence[str]) -> Tensor:
    """Return the tokens of texts ``(n, context)``, int64, as the text tower of a model takes them."""
    with _silent():
        return _open_clip().get_tokenizer(known_name(name))(list(texts))


def zero_shot_head(name: str, model: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return the weights of a linear classifier of normalised image features, made of text alone.

    A class is the mean of the normalised features of its name in every template, normalised again and multiplied by
    the model's logit scale, so that the outputs are logits.

    Args:
        name: of the model, for its tokenizer.
        model: CLIP, with ``encode_text`` and ``logit_scale``.
        class_names: in the order of the classes.
        templates: texts with ``{}`` for the name: ``"a photo of a {}."``.

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
            f"Found {len(class_names)} class names and {len(templates)} templates; expected one at least of each."
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
    except Exception as error:  # a package can be there and broken
        line = (str(error).strip().splitlines() or [""])[0]
        raise WeightspaceError(
            f'open_clip cannot be imported ({type(error).__name__}: {line}); pip install "weightspace[clip]"'
        ) from error
    return open_clip


@contextmanager
def _silent() -> Iterator[None]:
    """Keep open_clip's warnings from the root logger, and from giving it a handler for good."""
    before, handler = logging.root.manager.disable, logging.NullHandler()
    logging.root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.removeHandler(handler)
