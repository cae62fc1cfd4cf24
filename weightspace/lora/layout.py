"""The model as seen by PEFT: the module of each weight, the kind of its layer, and its part of a configuration.

transformers 5 keeps the experts of a layer as one parameter. PEFT fuses the factors of single experts on loading, if
all have the same rank, and takes the target parameters from ``target_parameters``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from weightspace.lora.model_config import is_in_out
from weightspace.lora.module_names import names_of
from weightspace.lora.tied_weights import Shapes, hidden_ties, is_head
from weightspace.lora.write import exact_targets, lora_config

#: Kind of a weight: of a linear layer, ``(out, in)`` or ``(in, out)``, of an embedding, or a convolution kernel.
Kind: TypeAlias = Literal["linear", "in_out", "embedding", "convolution"]

#: Last names of look-up modules, whose factors have other names in PEFT. (The first two look like them, but are linear
#: layers.)
_LOOKUP = re.compile(
    r"(?!vision_|patch_)((.+_)?embed_tokens(_per_layer)?|(.+_)?(position|token|word|tok|type|tile|distance|language)"
    r"_embeddings?(_\d+)?|embeddings?|embed|embed_in|(tokens|positions|pos)_embed|shared|wte|wpe|relative_attention_bias)"
)

#: Linear layers whose last name contains "emb"; others are unknown.
_EMBEDDING_LINEAR = re.compile(r".*(patch|proj|out|hidden|dense|linear|class|transform|mapping|vision).*")

#: Positions shifted by an offset inside their module, which PEFT doesn't shift.
_SHIFTED = ("embed_positions",)

#: Types whose kernels read these modules' weights directly, so that PEFT refuses to adapt them.
_FIXED: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"), ("out_proj", "conv1d")
)

#: The first convolution over sound, with one channel; others with one channel are grouped and don't fit PEFT's ranks.
_STEM = re.compile(r".*conv_layers\.0\.conv")

#: Weight of an expert -> the fused parameter that contains it.
_EXPERT = re.compile(r"(?P<experts>.+\.experts)\.\d+\.(?P<part>w[123]|gate_proj|up_proj|down_proj)\.weight")
_FUSED = {"w1": "gate_up_proj", "w3": "gate_up_proj", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}

#: Types for which PEFT accepts the names of transformers 4 and finds the parameters itself.
_CONVERTED = ("mixtral", "minimax", "minimax_m2")

#: Modules next to the experts that route between them.
_ROUTERS = ("gate", "router")

#: Part of the names of experts' weights that follows the module containing their router.
_BESIDE = (".experts.", ".input_linear.")


def fused_names(names: Collection[str]) -> list[str]:
    """Return the weights of experts and their routers, whose factors PEFT requires to have one rank.

    Args:
        names: weights with factors, by the names of files or of modules.
    """
    experts = {match["experts"] for name in names if (match := _EXPERT.fullmatch(name))}
    routers = {f"{container.removesuffix('experts')}{router}.weight" for container in experts for router in _ROUTERS}
    return [name for name in names if name in routers or _EXPERT.fullmatch(name)]


class Layout:
    """The weights of a model as PEFT sees them."""

    def __init__(self, shapes: Shapes, config: dict[str, Any], *, fan_in_fan_out: bool) -> None:
        """Analyse a model.

        Args:
            shapes: tensor -> shape, by the names of its files.
            config: configuration of the model; if empty, names are those of modules.
            fan_in_fan_out: linear weights are stored as ``(in, out)``, if the configuration doesn't say.
        """
        self._shapes = shapes
        self._config = config
        self._fan_in_fan_out = fan_in_fan_out
        self._converted = config.get("model_type") in _CONVERTED
        self._names = names_of({} if self._converted else config)
        matches = [match for name in shapes if config and (match := _EXPERT.fullmatch(name))]
        self._experts = {match["experts"] for match in matches}
        self._parts = {match["part"] for match in matches}
        marked = (self._names.module(name).partition(mark) for mark in _BESIDE for name in shapes if config)
        self._mixtures = {front for front, mark, _ in marked if mark}
        self.ties = hidden_ties(config, shapes)

    def module(self, name: str) -> str:
        """Return the module of a weight."""
        return self._names.module(name).removesuffix(".weight")

    def kind(self, name: str) -> Kind | None:
        """Return the kind of a weight, or None if PEFT has no factors for it."""
        module, _, parameter = name.rpartition(".")
        parent, _, last = module.rpartition(".")
        shape = self._shapes[name]
        size = len(shape)
        if parameter != "weight" or last in (*_SHIFTED, *_FIXED.get(str(self._config.get("model_type")), ())):
            return None
        if size != 2:
            layer = f"{parent.rpartition('.')[2]}.{last}"
            return "convolution" if self._is_convolution(layer, shape) or _STEM.fullmatch(module) else None
        if f"{parent}.in_proj_weight" in self._shapes or not self._is_plain(last):
            return None
        if self._is_lookup(module, last):
            return "embedding"
        default = self._fan_in_fan_out and not is_head(name)
        return "in_out" if is_in_out(self._config, module, default=default) else "linear"

    def is_fused(self, name: str) -> bool:
        """Return whether the factors of a weight must have the rank shared by all experts."""
        return name in self._shapes and (self._is_expert(name) or self._is_parameter(name))

    def configuration(self, ranks: Mapping[str, int], kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Return the configuration of an adapter.

        Args:
            ranks: weight -> rank of its factors.
            kinds: weight -> its kind.
        """
        modules = {self.module(name): rank for name, rank in ranks.items()}
        turned = self._fan_in_fan_out or "in_out" in kinds.values()
        fused = [name for name in ranks if self.is_fused(name)]
        if not fused:
            return self._exact(lora_config(modules, fan_in_fan_out=turned))
        config = lora_config(modules, common=ranks[fused[0]], fan_in_fan_out=turned)
        return self._exact(config if self._converted else config | self._parameters(config, ranks, fused))

    def _exact(self, config: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration whose targets aren't suffixes of other module names."""
        targets = set(config["target_modules"])
        parts = [self.module(name).split(".") for name in self._shapes]
        modules = {".".join(part[:end]) for part in parts for end in range(1, len(part) + 1)} - targets
        ends = {".".join(module.split(".")[start:]) for module in modules for start in range(1, module.count(".") + 1)}
        return config if targets.isdisjoint(ends) else exact_targets(config)

    def _parameters(self, config: Mapping[str, Any], ranks: Mapping[str, int], fused: Sequence[str]) -> dict[str, Any]:
        """Return the fields of a configuration that target parameters."""
        two = {r".*\.gate_up_proj": 2 * int(config["r"])} if self._parts else {}  # both halves contribute their ranks
        return {
            "target_modules": [self.module(name) for name in ranks if name not in fused],
            "target_parameters": list(dict.fromkeys(map(self._parameter, fused))),
            "rank_pattern": {**config["rank_pattern"], **two},
            "alpha_pattern": {**config["alpha_pattern"], **two},
        }

    def _parameter(self, name: str) -> str:
        """Return the parameter of transformers' model that a weight is or becomes part of."""
        match = _EXPERT.fullmatch(name)
        if match is None:
            return f"{self.module(name)}.weight"
        return f"{self.module(match['experts'])}.{_FUSED.get(match['part'], 'down_proj')}"

    def _is_parameter(self, name: str) -> bool:
        """Return whether PEFT reaches a weight only as a parameter: a router, or a module named like an expert's part.

        When PEFT fuses experts, it takes every module of such a name for a part of them.
        """
        parent, _, last = self.module(name).rpartition(".")
        if len(self._shapes[name]) != 2 or self._is_expert(name) or not self._config:
            return False
        return last in self._parts or (last in _ROUTERS and parent in self._mixtures)

    def _is_expert(self, name: str) -> bool:
        """Return whether a weight belongs to one expert, and is fused with the others' by transformers."""
        return bool(self._experts) and _EXPERT.fullmatch(name) is not None

    def _is_convolution(self, layer: str, shape: tuple[int, ...]) -> bool:
        """Return whether a weight is that of an ungrouped convolution, judging by the end of its name and its shape."""
        grouped = shape[1:2] == (1,) and bool(self._config) and self._config.get("num_channels") != 1
        if len(shape) == 3:  # fused experts also have three
            return "conv" in layer and shape[1] != 1
        return 4 <= len(shape) <= 5 and not grouped

    def _is_plain(self, last: str) -> bool:
        """Return whether the kind of a module of that name is known."""
        return "emb" not in last or _LOOKUP.fullmatch(last) is not None or _EMBEDDING_LINEAR.fullmatch(last) is not None

    def _is_lookup(self, module: str, last: str) -> bool:
        """Return whether a module is an embedding."""
        if last.isdigit() and "." in module:
            last = module.split(".")[-2]
            return "emb" in last and _LOOKUP.fullmatch(last) is not None
        return _LOOKUP.fullmatch(last) is not None or module.endswith("transformer.w")
