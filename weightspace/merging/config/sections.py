"""Find the section of a configuration that describes a stack of layers, and the keys that count its layers.

Language models have a single object, multi-tower models have nested objects (``text_config``, ``vision_config``), and
encoder-decoder models have one object with two sets of keys (``encoder_layers``, ``decoder_layers``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from weightspace.checkpoints.json_file import read_json_object
from weightspace.merging.config.towers import named_tower, tower, words

#: A configuration or a section of it.
Config: TypeAlias = Mapping[str, Any]

#: The keys that lead from a configuration to a section.
KeyPath: TypeAlias = tuple[str, ...]

#: A side of an encoder-decoder model.
Side: TypeAlias = Literal["encoder", "decoder"]

#: Keys with the number of layers: of a single stack, and of the sides of an encoder-decoder model.
_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "num_blocks",
    "depth",
    "layers",
    "num_transformer_layers",
)
_SIDE_COUNTS: Mapping[Side, tuple[str, ...]] = {
    "encoder": ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"),
}

#: Words in keys that may hold a number of layers, and words in stack names that do not distinguish stacks.
_COUNTED = frozenset({"layer", "layers", "block", "blocks", "depth"})
_USUAL = _COUNTED | {"transformer", "encoder", "decoder", "num", "hidden", "h"}

#: Maximum nesting depth of configurations.
_DEPTH = 3


def read_configuration(folder: Path, name: str = "config.json") -> dict[str, Any] | None:
    """Return a configuration file of a folder, or None if it does not exist.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / name
    return read_json_object(path) if path.exists() else None


def sections(config: Config, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Config]]:
    """Yield the configuration and its sections that describe a tower or a side, outermost first."""
    yield path, config
    for key, value in config.items():
        nested = isinstance(value, dict) and key != "quantization_config" and len(path) < _DEPTH
        if nested and (words(key)[-1:] in (("config",), ("cfg",)) or "model_type" in value):
            yield from sections(value, (*path, key))


def part_of(config: Config, path: KeyPath) -> Config:
    """Return the section of a configuration at a path; empty if there is none."""
    for key in path:
        inner = config.get(key)
        config = inner if isinstance(inner, dict) else {}
    return config


def section_of(config: Config, stack: str) -> KeyPath:
    """Return the path of the part that describes a stack.

    Args:
        config: the whole configuration.
        stack: path of the stack in the names of the tensors.
    """
    wanted = {word for component in stack.split(".") for word in words(component)}
    own = tower(stack)
    best: tuple[tuple[int, ...], KeyPath] = ((0, 0, 0), ())
    for path, content in sections(config):
        if not path or not (set(content) & {*_COUNTS, *sum(_SIDE_COUNTS.values(), ()), "model_type"}):
            continue
        keys = {word for key in path for word in words(key)}
        told = (named_tower(path) or "text") == own
        shared = len(keys & wanted)
        if (told and named_tower(path) is not None) or (shared and named_tower(path) in (None, own)):
            best = max(best, ((int(told), shared, len(path)), path), key=lambda entry: entry[0])
    return best[1]


def text_layers(config: Config) -> int | None:
    """Return the number of layers of the text model, if the configuration has a section for it."""
    for path, content in sections(config):
        if named_tower(path) == "text":
            keys = count_keys(content, None)
            return content[keys[0]] if keys else None
    return None


def count_keys(section: Config, side: Side | None, count: int | None = None, stack: str = "") -> list[str]:
    """Return the keys that hold the number of layers of a stack.

    Args:
        section: the section that describes the stack.
        side: the stack's side in an encoder-decoder model, or None.
        count: number of layers of the stack; keys with this value are preferred.
        stack: path of the stack; keys that contain a word of its name (``num_single_layers``) take precedence.
    """
    known = [key for key, value in section.items() if type(value) is int]
    plain = [key for key in _COUNTS if key in known]
    if side is None:
        told = set(words(stack.rpartition(".")[2])) - _USUAL
        named = [key for key in maybe_counts(section, count) if told & set(words(key))]
        if named:
            return named
        own = [key for names in _SIDE_COUNTS.values() for key in names if key in known]
        # Half of an encoder-decoder, as the audio tower of a language model, keeps the keys of both.
        first = [key for key in (*plain, *own) if section[key] == count] or plain[:1] or own[:1]
        if first and section[first[0]] != count and maybe_counts(section, count):
            return []  # the known keys are those of another stack
        return [key for key in (*plain, *own) if section[key] == section[first[0]]] if first else []
    own = [key for key in _SIDE_COUNTS[side] if key in known]
    if side == "decoder":
        return own
    # ``num_hidden_layers`` of such a configuration is another name for the encoder's layers, T5 has no other.
    mirrored = [key for key in plain if not own or section[key] == section[own[0]]]
    return [*own, *mirrored]


def maybe_counts(section: Config, count: int | None) -> list[str]:
    """Return the keys that appear to count layers and have the given value."""
    return [
        key
        for key, value in section.items()
        if type(value) is int and value == count and not _COUNTED.isdisjoint(words(key))
    ]


def side_of(stack: str, others: Iterable[str], *, flat: bool = False) -> Side | None:
    """Return the side of a stack in an encoder-decoder model; None if the model does not have both sides.

    Args:
        stack: path of the stack.
        others: paths of all stacks of the model.
        flat: whether one object describes all stacks, so that a vision encoder and a decoder outside towers are sides.
    """
    sides = {_side(other) for other in others if tower(other) == tower(stack) or (flat and _are_halves(stack, other))}
    return _side(stack) if {"encoder", "decoder"} <= sides else None


def _are_halves(stack: str, other: str) -> bool:
    """Return whether two stacks are the encoder of a tower and a decoder outside towers."""
    towers = {_side(own): named_tower(own.split(".")) for own in (stack, other)}
    return len(towers) == 2 and towers.get("encoder", "text") != "text" and towers.get("decoder", "text") is None


def _side(stack: str) -> Side | None:
    """Return the side named by the outermost component that names one."""
    for component in stack.split("."):
        own = words(component)
        if "encoder" in own or "decoder" in own:
            return "encoder" if "encoder" in own else "decoder"
    return None
