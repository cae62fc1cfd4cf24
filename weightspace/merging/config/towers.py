"""Towers of a model, told by the words in the names of its tensors: vision, audio, connector, text, output.

A tower is the first module of a path whose name says what it is: ``vision_tower.vision_model.encoder.layers.0`` is
vision, ``thinker.audio_tower.layers.0`` is audio. What says nothing belongs to the text model, the trunk of most.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, TypeAlias

#: What a tower is for, in the order in which data flows through a model.
Tower: TypeAlias = Literal["stem", "vision", "audio", "connector", "text", "output"]

#: Tower -> the words that tell it.
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

#: Convolutions in front of audio encoders, which are numbered too.
_STEMS = ("feature_extractor", "feature_projection", "conv_layers")

#: Modules that make sound of tokens.
_VOCODERS = ("code2wav", "token2wav")

_ORDER: tuple[Tower, ...] = ("stem", "vision", "audio", "connector", "text", "output")


@lru_cache(maxsize=4096)
def words(component: str) -> tuple[str, ...]:
    """Return the words of one component of a name: ``visionTower_2`` gives ``vision`` and ``tower``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", component)
    return tuple(word for word in re.split(r"[^a-z]+", spaced.lower()) if word)


def named_tower(components: Iterable[str]) -> Tower | None:
    """Return the tower that a path names; None where it names none.

    Args:
        components: of a tensor's or a stack's name, or keys of a configuration, from the outermost.
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
    """Return the tower that a tensor or a stack belongs to by its name: the text model's where nothing is said."""
    return named_tower(name.split(".")) or "text"


def is_language_model(stack: str) -> bool:
    """Return whether a stack's path names a language model, not only an encoder of text."""
    parts = stack.split(".")
    return any(part == "text_model" or not {"language", "llm"}.isdisjoint(words(part)) for part in parts)


def precedes(tower: Tower, other: Tower) -> bool:
    """Return whether data flows through a tower before it flows through the other one."""
    return _ORDER.index(tower) < _ORDER.index(other)


@lru_cache(maxsize=4096)
def _tower_of_component(component: str) -> Tower | None:
    """Return the tower that one component names."""
    if component.lower() in _VOCODERS:
        return "output"
    own = set(words(component))
    told: list[Tower] = [name for name, known in _WORDS.items() if own & known]
    if "text" in told and len(told) > 1:  # a layer between two towers: vision_language_adapter
        return "connector"
    return told[0] if told else None
