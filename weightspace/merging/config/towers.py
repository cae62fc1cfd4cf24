"""Identify the tower of a tensor (vision, audio, connector, text, output) by the words in its name.

The first component of a path that names a tower decides: ``vision_tower.vision_model.encoder.layers.0`` belongs to
vision, ``thinker.audio_tower.layers.0`` to audio. Names without such a component belong to the text model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, TypeAlias

#: Kinds of towers, in the order in which data flows through a model.
Tower: TypeAlias = Literal["stem", "vision", "audio", "connector", "text", "output"]

#: Tower -> words that identify it.
_WORDS: dict[Tower, frozenset[str]] = {
    "connector": frozenset(
        {"projector", "connector", "resampler", "perceiver", "qformer", "aligner", "merger", "abstractor", "bridge"}
    ),
    "vision": frozenset(
        {
            "vision",
            "visual",
            "image",
            "images",
            "img",
            "vit",
            "video",
            "siglip",
            "pixel",
            "dino",
            "dinov2",
            "eye",
            "sam",
        }
    ),
    "audio": frozenset({"audio", "speech", "acoustic", "sound", "mel", "wav", "waveform", "spectrogram"}),
    "output": frozenset({"talker", "vocoder", "mtp", "nextn", "medusa", "eagle", "draft", "postnet", "depth"}),
    "text": frozenset({"text", "language", "llm"}),
}

#: Convolutions before audio encoders, which are numbered like layers.
_STEMS = ("feature_extractor", "feature_projection", "conv_layers")

#: Modules that generate audio from tokens.
_VOCODERS = ("code2wav", "token2wav")

_ORDER: tuple[Tower, ...] = ("stem", "vision", "audio", "connector", "text", "output")


@lru_cache(maxsize=4096)
def words(component: str) -> tuple[str, ...]:
    """Return the words in a component of a name: ``visionTower_2`` gives ``vision`` and ``tower``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", component)
    return tuple(word for word in re.split(r"[^a-z]+", spaced.lower()) if word)


def named_tower(components: Iterable[str]) -> Tower | None:
    """Return the tower that a path names, or None.

    Args:
        components: components of a tensor's or stack's name, or keys of a configuration, outermost first.
    """
    components = list(components)
    if any(component in _STEMS for component in components):
        return "stem"
    for component in components:
        found = _tower_of_component(component)
        if found is not None:
            return found
    return None


def tower(name: str) -> Tower:
    """Return the tower of a tensor or stack by its name; the text model by default."""
    return named_tower(name.split(".")) or "text"


def is_language_model(stack: str) -> bool:
    """Return whether a stack's path names a language model instead of just a text encoder."""
    parts = stack.split(".")
    return any(part == "text_model" or not {"language", "llm"}.isdisjoint(words(part)) for part in parts)


def precedes(tower: Tower, other: Tower) -> bool:
    """Return whether data flows through a tower before the other one."""
    return _ORDER.index(tower) < _ORDER.index(other)


@lru_cache(maxsize=4096)
def _tower_of_component(component: str) -> Tower | None:
    """Return the tower that a component names, or None."""
    if component.lower() in _VOCODERS:
        return "output"
    own = set(words(component))
    told: list[Tower] = [name for name, known in _WORDS.items() if own & known]
    if "text" in told and len(told) > 1:  # a layer between two towers: vision_language_adapter
        return "connector"
    return told[0] if told else None
