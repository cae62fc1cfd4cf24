"""Detection of adapter files given as models, by the names of their tensors alone.

The change of a LoRA is the product of its factors, and the mean of factors isn't the factor of the mean: two adapters
of the same change, one with the signs of both factors flipped, average to no change at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.errors import CheckpointError
from weightspace.lora.config import CONFIG

#: A part of a name that only tensors of adapters have: the factors of PEFT, torchtune and kohya, LyCORIS's Hadamard and
#: Kronecker products, rotations and magnitudes, and what PEFT's other kinds are made of.
_PART = re.compile(
    r"lora_([AB]|[ab]|embedding_[AB]|magnitude_vector|up|down|mid|controlnet)|(.+_)?lora_linear_layer"
    r"|lora(_(matrix_)?[ABab]|[AB])\d*(_\w+)?"
    r"|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)|dora_scale|b?oft_(blocks|diag|[RrSs])"
    r"|ia3_l|vera_([AB]|lambda_[bd])|randlora_(lambda|gamma)|fourierft_spectrum|hra_u|(bone|miss)_block|c3a_kernel"
)

#: A name without any of these isn't an adapter's; a quick first check.
_HINT = re.compile(r"lora|hada|lokr|oft|dora|ia3|vera|fourierft|hra_|bone|miss_|c3a|base_model|adapter|:")

#: Prefix of every tensor of PEFT's adapters, and name components of its other kinds.
_PEFT = "base_model.model."
_KIND = re.compile(
    r"(adamss|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hada|hira|hra|ia3|lily|lokr|lora|miss|oft|peanut|poly"
    r"|psoft|pvera|randlora|road|shira|tinylora|unilora|vblora|vera|waveft)_.+"
)

#: Names of diffusers' halves: ``to_q_lora.down.weight``, ``lora.up.weight``, XLabs's ``qkv_lora1.down``; NeMo's
#: ``linear_in``, below ``lora_kqv_adapter`` in the first version and below ``linear_qkv.adapter`` in the second.
_HALF = re.compile(
    r"(^|\.)([^.]+_)?lora\d*\.(up|down|A|B)(\.|$)|(^|\.)([^.]+_)?lora_[^.]+\.linear_(in|out)(\.|$)"
    r"|(^|\.)linear_[^.]+\.adapter\.linear_(in|out)(\.|$)"
)

#: Names of cloneofsimo's flat lists: ``unet:0:up``.
_LISTED = re.compile(r"\w+:\d+:(up|down)")

#: Suffixes that model tensors may have too: full differences, and factors. Kohya's names share a prefix, and are module
#: names without their dots.
_DIFFERENCE = re.compile(r".+\.(diff|diff_b)|(lora|lycoris)_.+\.([wb]_norm|set_weight|on_input|[ab][12]\.weight)")
_FLAT = re.compile(r"(lora_(unet|te\d?|transformer|prior\w*|llm|t5\w*|clip\w*)|lycoris)_[^.]+\..+")
_SCALE = re.compile(r".+\.(alpha|scale|scalar|dora_scale|reshape_weight)")

#: An adapter may have a few full weights besides its factors: heads, and embeddings of an extended vocabulary.
_WHOLE = re.compile(r".*(embed|bundle_emb|lm_head|wte|score|classifier|modules_to_save).*")


def check_is_model(names: Iterable[str], source: object) -> None:
    """Check that tensors are those of a model, without factors of an adapter.

    Args:
        names: names of the tensors.
        source: their source in the error, usually a path.

    Raises:
        CheckpointError: they belong to an adapter, or to a model with an unmerged adapter.
    """
    names = [name for name in names if isinstance(name, str)]  # other objects are refused elsewhere
    factors = [name for name in names if is_factor(name)] or _differences(names)
    if not factors:
        return
    if _holds_model(names, factors):
        raise CheckpointError(
            f"{_shown(source)} contains a model with an unmerged adapter ({_shown(factors[0])}): "
            "the mean of factors isn't the factor of the mean. Expected plain weights; merge the adapter into its "
            "model first (PEFT's merge_and_unload)."
        )
    raise CheckpointError(
        f"{_shown(source)} is an adapter, not a model ({_shown(factors[0])}): the mean of factors isn't the factor of "
        "the mean. Merge adapters with `weightspace merge-adapters`, or apply each to its model: MODEL+ADAPTER. Both "
        "read folders of PEFT, and files of kohya, LyCORIS and diffusers; convert other formats first."
    )


def check_no_adapter_folder(path: Path) -> None:
    """Refuse the folder of an adapter in place of that of a model.

    Raises:
        CheckpointError: it has the configuration of an adapter, and no weights of a model.
    """
    if (path / CONFIG).is_file() and not any((path / name).is_file() for name in ENTRANCES):
        raise CheckpointError(
            f"{_shown(path)} is an adapter folder ({CONFIG}) without the weights of a model. Merge adapters with "
            "`weightspace merge-adapters`, or apply each to its model: MODEL+ADAPTER."
        )


def is_factor(name: str) -> bool:
    """Return whether a tensor belongs to an adapter, judging by its name."""
    if _HINT.search(name) is None:
        return False
    parts = name.split(".")
    if any(map(_PART.fullmatch, parts)) or (name.startswith(_PEFT) and any(map(_KIND.fullmatch, parts))):
        return True
    return _HALF.search(name) is not None or _LISTED.fullmatch(name) is not None


def _differences(names: Collection[str]) -> list[str]:
    """Return the tensors of a file that only contains differences from a model, and their scales."""
    differences = [name for name in names if _is_difference(name)]
    return differences if all(_is_difference(name) or _SCALE.fullmatch(name) for name in names) else []


def _is_difference(name: str) -> bool:
    if not name.startswith(("lora", "lycoris")):
        return name.endswith((".diff", ".diff_b"))
    return _DIFFERENCE.fullmatch(name) is not None or _FLAT.fullmatch(name) is not None


def _holds_model(names: Collection[str], factors: Collection[str]) -> bool:
    """Return whether there are weights of a model besides factors: more than the few that an adapter may have."""
    taken = set(factors)
    rest = [name for name in names if name not in taken and not _SCALE.fullmatch(name) and not _is_difference(name)]
    return any(not _WHOLE.fullmatch(name) for name in rest)


def _shown(text: object) -> str:
    """Return the end of a text, to keep errors short."""
    return str(text) if len(str(text)) <= 120 else f"…{str(text)[-119:]}"
