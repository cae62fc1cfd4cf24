"""Classification of tensors outside a stack of layers: before the first layer or after the last.

Decided by conventional names: the tower of a tensor, its side of an encoder-decoder, then the outermost module named
like a head, a stem or a final norm. Where names are not conclusive, the order of the file decides if it is that of the
modules; the remaining tensors come before the layers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.merging.config.towers import Tower, precedes, tower, words
from weightspace.merging.slices.layer_index import is_number

#: Words in names of modules that read the output of the last layer, whatever their other words (``pre_classifier``).
_HEADS = frozenset(
    {
        *("head", "heads", "classifier", "classifiers", "classification", "score", "scores", "logit", "logits", "pred"),
        *("prediction", "predictions", "predictor", "unembed", "unembedding", "unembeddings", "pooler", "pool", "mlm"),
        *("pooling", "regression", "regressor", "reward", "generator", "discriminator", "nsp", "readout", "qa", "bbox"),
        *("quantizer", "loss"),
    }
)

#: Full names of such modules.
_HEAD_NAMES = re.compile(
    r"cls|fc\d*|embed_out|emb_layer_norm_after|project_(hid|q|out)|proj_out|altup_unembed.*|vocab_(transform|projector|layer_norm)"
)

#: Words for the end, except in names of embeddings.
_ENDS = frozenset({"out", "output", "outputs", "final", "last", "post", "after"})
_EMBEDDINGS = frozenset({"emb", "embs", "embed", "embeds", "embedding", "embeddings", "embedder", "embd"})

#: Words in names of modules that read the input.
_STEMS = _EMBEDDINGS | frozenset(
    {
        *("wte", "wpe", "wtt", "shared", "token", "tokens", "tok", "tokenizer", "pos", "position", "positions", "word"),
        *(
            "positional",
            "patch",
            "patches",
            "stem",
            "conv",
            "in",
            "input",
            "inputs",
            "pre",
            "feature",
            "features",
            "mask",
        ),
        *(
            "cls",
            "reg",
            "register",
            "registers",
            "prompt",
            "prompts",
            "prefix",
            "rotary",
            "rope",
            "freq",
            "freqs",
            "rel",
        ),
        *("relative", "time", "timestep", "frontend", "subsample", "subsampling", "prenet", "sinusoid", "sinusoidal"),
        *("spectrogram", "latent", "latents", "query", "queries", "segment", "altup", "per", "layrnorm"),
    }
)

#: Final norms, and words of last modules that are ambiguous on their own.
_NORM = re.compile(r"norm|(^|_)ln(\d|_|$)")
_LAST = frozenset({"projection", "projector", "proj", "dense", "linear", "adapter", "value", "critic", "actor"})


class Boundaries:
    """Classifier of tensors as before or after a stack of layers."""

    def __init__(
        self, stack: str, tensors: Mapping[str, TensorInfo], inside: Mapping[str, int], *, early_norm: bool = False
    ) -> None:
        """Prepare for one model.

        Args:
            stack: the path of the stack.
            tensors: all tensors of the model, in file order.
            inside: tensor of the stack -> its layer.
            early_norm: whether the norm beside the stack is applied before its first layer, as in wav2vec 2.0 without
                ``do_stable_layer_norm``.
        """
        self._stack = stack.split(".")
        self._tower: Tower = tower(stack)
        towers = {tower(name) for name in tensors}
        self._has_media = not towers.isdisjoint({"vision", "audio"})
        self._early_norm = early_norm or any(".rel_embeddings." in name for name in tensors)  # DeBERTa normalises these
        order = {} if _is_sorted(tensors) else {name: place for place, name in enumerate(tensors)}
        self._order = order
        self._end = max((order[name] for name in inside if name in order), default=0)

    def is_before(self, name: str) -> bool:
        """Return whether a tensor outside the stack comes before its layers."""
        parts = name.split(".")
        depth = _common(parts, self._stack)
        before = self._by_tower(name, parts, depth)
        if before is None:
            modules = parts[depth:-1] if parts[-1] in ("weight", "bias") else parts[depth:]
            before = self._by_words(modules or parts[-1:], beside=depth == len(self._stack) - 1)
        return before if before is not None else self._order.get(name, 0) <= self._end

    def _by_tower(self, name: str, parts: Sequence[str], depth: int) -> bool | None:
        """Return whether a tensor of another tower, side or sequence position comes before; None within the same."""
        flow = tower(name)
        # A projector in a single-tower model is part of its head.
        if flow != self._tower and (flow != "connector" or self._has_media):
            return precedes(flow, self._tower)
        if depth >= min(len(parts), len(self._stack)):
            return None
        here, there = parts[depth], self._stack[depth]
        if is_number(here) and is_number(there):
            return int(here) < int(there)
        own, other = ({"encoder", "decoder"} & set(words(part)) for part in (here, there))
        return "encoder" in own if own and other and own != other else None

    def _by_words(self, modules: Sequence[str], *, beside: bool) -> bool | None:
        """Return whether the outermost module with a conclusive name comes before; None if there is none."""
        if modules[-1] == "decoder":  # a head over the vocabulary
            return False
        for module in modules:
            own = set(words(module))
            if own & _HEADS or _HEAD_NAMES.fullmatch(module) or (own & _ENDS and not own & _EMBEDDINGS):
                return False
            if own & _STEMS:
                return True
            if _NORM.search(module.lower()):
                return self._early_norm and beside
            if own & _LAST:
                return False
        return None


def _common(parts: Sequence[str], stack: Sequence[str]) -> int:
    """Return how many leading components a name shares with the path of the stack."""
    limit = min(len(parts) - 1, len(stack))
    return next((depth for depth in range(limit) if parts[depth] != stack[depth]), limit)


def _is_sorted(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether the tensors of each dtype are in alphabetical order, as in safetensors files."""
    last: dict[str, str] = {}
    for name, info in tensors.items():
        if name < last.get(info.dtype, ""):
            return False
        last[info.dtype] = name
    return True
