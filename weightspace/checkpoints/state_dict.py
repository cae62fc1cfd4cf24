"""State dicts: named tensors in memory, and checks before they are used or written.

Two names are *tied* if they are the same view of the same memory (same address, dtype, shape and strides), like the
embedding and the head of a language model. Views that merely overlap aren't tied.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeAlias

import torch

from weightspace.checkpoints.buffers import holds_whole_numbers, is_pruned_in_one
from weightspace.checkpoints.dtypes import NAMES
from weightspace.checkpoints.measure import count_non_finite, is_inexact
from weightspace.checkpoints.quantisation import check_not_quantised, find_quantised
from weightspace.checkpoints.safetensors_header import MAX_NAME
from weightspace.errors import CheckpointError

#: Name -> tensor, in the order of the network or file.
StateDict: TypeAlias = dict[str, torch.Tensor]

#: Maximum number of names listed in an error.
_LISTED = 3


def check_compatible(a: StateDict, b: StateDict, names: tuple[str, str] = ("a", "b")) -> None:
    """Check that two state dicts can be combined element by element.

    Float dtypes may differ (they are promoted), and so may integer dtypes; a float may only meet an integer in buffers
    of whole numbers (``position_ids``, counters, masks).

    Args:
        a: the first state dict.
        b: the second state dict.
        names: names of the two for errors, usually their paths.

    Raises:
        CheckpointError: names or shapes differ, a tensor is float in one and integer in the other, or one is
            quantised.
    """
    for state, label in zip((a, b), names, strict=True):
        check_not_quantised(label, find_quantised({name: _dtype_and_axes(tensor) for name, tensor in state.items()}))
    only_a = [repr(name) for name in a if name not in b]
    only_b = [repr(name) for name in b if name not in a]
    common = [name for name in a if name in b]
    shapes = [
        f"{name!r} {tuple(a[name].shape)} against {tuple(b[name].shape)}"
        for name in common
        if a[name].shape != b[name].shape
    ]
    kinds = [
        f"{name!r} {dtype_name(a[name].dtype)} against {dtype_name(b[name].dtype)}"
        for name in common
        if is_inexact(a[name]) != is_inexact(b[name]) and not holds_whole_numbers(name, a[name].shape)
    ]
    found = [
        f"{_some(only_a, 'name')} only in {names[0]}" if only_a else "",
        f"{_some(only_b, 'name')} only in {names[1]}" if only_b else "",
        f"{_some(shapes, 'shape')} {'differs' if len(shapes) == 1 else 'differ'}" if shapes else "",
        f"{_some(kinds, 'tensor')} float in one and integer in the other" if kinds else "",
    ]
    if any(found):
        hint = _pruning_hint(a, b, names) or ("" if common else _prefix_hint(a, b))
        raise CheckpointError(
            f"{names[0]} and {names[1]} do not fit together: {'; '.join(filter(None, found))}. "
            f"Two checkpoints of one architecture are expected.{hint}"
        )


def _pruning_hint(a: StateDict, b: StateDict, names: tuple[str, str]) -> str:
    """Return a hint if only one of two state dicts is pruned."""
    for state, other, label in ((a, b, names[0]), (b, a, names[1])):
        if any(name.endswith("_orig") and name not in other and is_pruned_in_one(name, state, other) for name in state):
            return f" {label} alone is pruned: make that permanent first, by torch.nn.utils.prune.remove."
    return ""


def _prefix_hint(a: StateDict, b: StateDict) -> str:
    """Return a hint with the prefix by which the names of two state dicts differ, if that is all."""
    for short, long in ((a, b), (b, a)):
        for name in long:
            prefix = next((name.removesuffix(other) for other in short if name.endswith(f".{other}")), "")
            if prefix:
                return (
                    f" They differ by the prefix {prefix!r}: load with strip_prefix={prefix!r}, or rewrite one of "
                    f"them: weightspace merge FILE -m passthrough --strip-prefix {prefix} -o NEW."
                )
    return ""


def _dtype_and_axes(tensor: torch.Tensor) -> tuple[str, int]:
    """Return the safetensors name of a tensor's dtype (or torch's if it has none), and its number of axes."""
    return NAMES.get(tensor.dtype, dtype_name(tensor.dtype).upper()), tensor.dim()


def check_finite(state: StateDict, source: object) -> None:
    """Check that no float tensor holds NaN or infinity.

    Raises:
        CheckpointError: some do; the message names ``source`` (a path) and the first few tensors.
    """
    bad = [
        f"{name!r} {count:,} of {tensor.numel():,}"
        for name, tensor in state.items()
        if (count := count_non_finite(tensor))
    ]
    if bad:
        raise CheckpointError(
            f"{source}: {_some(bad, 'tensor')} with NaN or infinite values; expected finite values. "
            "Did training diverge, or float16 overflow?"
        )


def without_prefix(state: StateDict, prefix: str, source: object) -> StateDict:
    """Return the state dict with ``prefix`` removed from all names that start with it.

    Raises:
        CheckpointError: two names collide, or a name becomes empty.
    """
    stripped: StateDict = {}
    for name, tensor in state.items():
        short = name.removeprefix(prefix)
        if short in stripped or not short:
            problem = "there are two tensors of that name" if short else "nothing is left"
            raise CheckpointError(f"{source}: without the prefix {prefix!r}, {name!r} is {short!r} and {problem}.")
        stripped[short] = tensor
    return stripped


def tied_names(state: StateDict) -> dict[str, str]:
    """Return name -> first name of the same memory, for all tied names but the first."""
    first: dict[Hashable, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in state.items():
        if tensor.numel():
            owner = first.setdefault(_view(tensor), name)
            if owner != name:
                tied[name] = owner
    return tied


def check_storable(state: StateDict, source: object) -> None:
    """Check that a state dict maps names to plain tensors with data.

    Raises:
        CheckpointError: it is empty, a name isn't a string, or a value isn't a dense tensor with data in
            memory.
    """
    if not state:
        raise CheckpointError(f"{source}: no tensors found; expected at least one.")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{source}: tensor names must be strings, found {name!r} of type {type(name).__name__}."
            )
        if len(name) > MAX_NAME:
            raise CheckpointError(
                f"{source}: {name!r} has a name of {len(name):,} characters, expected at most {MAX_NAME:,}."
            )
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{source}: {name!r} is a {type(tensor).__name__}, expected a tensor.")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantised" if tensor.is_quantized else "without data" if tensor.is_meta else "sparse"
            raise CheckpointError(f"{source}: {name!r} is {kind}, expected a dense tensor. Convert it before saving.")


def dtype_name(dtype: torch.dtype) -> str:
    """Return the short name of a dtype: ``float32``, ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _view(tensor: torch.Tensor) -> Hashable:
    """Return a key that two tensors share exactly if they are the same view of the same memory."""
    place = (tensor.device, tensor.data_ptr(), tensor.is_conj(), tensor.is_neg())
    return *place, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _some(items: Sequence[str], noun: str) -> str:
    """Return the count and the first few names, as in ``2 names ('a', 'b')``."""
    more = ", …" if len(items) > _LISTED else ""
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'} ({', '.join(items[:_LISTED])}{more})"
