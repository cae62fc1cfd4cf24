"""Weight matrices of a network: which tensors count, and how each is flattened.

The rules see names and shapes only, so that they hold for any checkpoint of an architecture, however it was stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from torch import Tensor

from weightspace.arithmetic.effective import effective_weights
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.symmetry import PermutationSpec

#: Names of tensors in which queries, keys and values are stacked, in this order and one below the other.
_FUSED = ("in_proj_weight", "qkv.weight", "qkv_proj.weight", "Wqkv.weight", "c_attn.weight")
#: Words, between underscores, of what looks rows up or adds them; and of what is linear in spite of such a word.
_TABLE = re.compile(r"(^|_)(emb|embed|embedding|embeddings|wte|wpe|pos|position|positional|tokens?)(_|$)")
_LINEAR = re.compile(r"(^|_)(patch|out|proj|projection|mapping)(_|$)")
_NEVER_LINEAR = re.compile(r"^shared$|(^|_)(bias|biases|table)$")


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A weight seen as a matrix.

    Attributes:
        name: what results call it: the tensor's name, with ``[q]``, ``[k]`` or ``[v]`` for a third of a fused one.
        tensor: the name of the tensor that it is part of.
        matrix: ``(out, in)``, in the dtype and memory of the tensor.
        aliases: other names under which the network has the same matrix, as of a module that it holds twice.
    """

    name: str
    tensor: str
    matrix: Tensor
    aliases: tuple[str, ...] = ()


def weight_matrices(
    state: StateDict,
    *,
    names: Iterable[str] | None = None,
    spec: PermutationSpec | None = None,
    label: str = "The network",
) -> dict[str, WeightMatrix]:
    """Return the weight matrices of a network by name, in the order of the state dict.

    A 2-d tensor is taken as it is, and one of more dimensions that is called ``weight``, as a convolution's is, as
    ``(out, in·h·w)``. (That of a transposed convolution is ``(in, out·h·w)``, and GPT-2's are ``(in, out)``.)
    Fused queries, keys and values count as three matrices: ``in_proj_weight`` of ``nn.MultiheadAttention``,
    ``qkv.weight``, ``qkv_proj.weight``, ``Wqkv.weight`` and ``c_attn.weight``, where one axis is three times the
    other; those of GPT-2, ``(in, 3·out)``, are turned. Fused weights of other sizes (grouped queries) or another
    order (``query_key_value``, by heads) are taken whole.

    Left out are embeddings, which are told by the name of the tensor, or of its module if it is called ``weight``:
    a word between its underscores is emb, embed, embedding(s), wte, wpe, pos, position, positional or token(s), and
    none is patch, out, proj, projection or mapping; or the last is bias(es) or table, or all is ``shared``. So are
    tensors of fewer than two dimensions, of more that aren't called ``weight`` (positions, scales, stacked experts),
    integer, complex and empty ones.
    An output layer that is tied to an embedding is the linear layer that it is.

    A parametrized weight is taken as the network uses it, under the name that it has in its module: weight norm,
    spectral norm and pruning are known, others refused. Names that share their memory are one matrix.

    Args:
        state: float tensors of any precision.
        names: names or patterns (``layer4.*``) of the tensors to take instead; embeddings too.
        spec: its statistics are left out.
        label: what an error calls the network, such as its path.

    Raises:
        WeightspaceError: there are no matrices, or none of a name that was given; or a weight is under a
            parametrization that is not known.
    """
    weights = effective_weights(state, label)
    tied = tied_names(weights)
    chosen = None if names is None else list(names)
    statistics = frozenset() if spec is None else spec.statistics
    found: dict[str, WeightMatrix] = {}
    owners: dict[str, list[str]] = {}
    for name, tensor in weights.items():
        wanted = not _is_table(name) if chosen is None else any(fnmatchcase(name, one) for one in chosen)
        if wanted and name not in statistics and _is_weight(name, tensor, chosen):
            owners.setdefault(tied.get(name, name), []).append(name)
    for name, *aliases in owners.values():
        found.update((one.name, one) for one in _matrices(name, aliases, weights[name].detach()))
    _check_found(found, weights, chosen, label)
    return found


class Matrix(Protocol):
    """What is known of one weight matrix of a network."""

    @property
    def matrix(self) -> Tensor:
        """The matrix itself."""
        ...

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        ...


Known = TypeVar("Known", bound=Matrix)


def side_by_side(a: Mapping[str, Known], b: Mapping[str, Known]) -> dict[str, tuple[Known, Known]]:
    """Return what is known of the matrices of two networks by name, in the order of the first.

    A matrix that both have under the same two names is there once; one that only one of them ties, twice.

    Raises:
        CheckpointError: the networks have other names or shapes.
    """
    ours, theirs = ({name: one for own, one in known.items() for name in (own, *one.aliases)} for known in (a, b))
    first, second = ({name: one.matrix for name, one in known.items()} for known in (ours, theirs))
    check_compatible(first, second)
    return {name: (ours[name], theirs[name]) for name in ours if name in a or name in b}


def _is_weight(name: str, tensor: Tensor, chosen: Sequence[str] | None) -> bool:
    """Return whether a tensor has the form of a weight; one that was chosen by its full name may be called anything."""
    if not tensor.is_floating_point() or tensor.ndim < 2 or not tensor.numel():
        return False
    return tensor.ndim == 2 or name.rpartition(".")[2] == "weight" or (chosen is not None and name in chosen)


def _is_table(name: str) -> bool:
    """Return whether a tensor is an embedding by its name."""
    path, _, own = name.rpartition(".")
    word = path.rpartition(".")[2] if own == "weight" else own
    if _NEVER_LINEAR.search(word):
        return True
    return _TABLE.search(word) is not None and _LINEAR.search(word) is None


def _matrices(name: str, aliases: Sequence[str], tensor: Tensor) -> Iterator[WeightMatrix]:
    """Yield the matrices of a tensor: one, or three where queries, keys and values are fused."""
    matrix = tensor.flatten(1)
    rows, columns = matrix.shape
    if name.endswith("c_attn.weight") and columns == 3 * rows:
        matrix, rows, columns = matrix.T, columns, rows
    if name.endswith(_FUSED) and rows == 3 * columns:
        for part, third in zip("qkv", matrix.chunk(3), strict=True):
            yield WeightMatrix(f"{name}[{part}]", name, third, tuple(f"{alias}[{part}]" for alias in aliases))
    else:
        yield WeightMatrix(name, name, matrix, tuple(aliases))


def _check_found(found: dict[str, WeightMatrix], state: StateDict, chosen: Sequence[str] | None, label: str) -> None:
    """Raise unless there are matrices, and some for every name that was chosen."""
    taken = {name.partition("[")[0] for one in found.values() for name in (one.tensor, *one.aliases)}
    for pattern in chosen or ():
        if not any(fnmatchcase(name, pattern) for name in taken):
            if pattern in state:
                raise WeightspaceError(
                    f"{label}: {pattern!r} is {state[pattern].dtype} of shape {tuple(state[pattern].shape)} and counts "
                    "as no matrix; expected a float parameter of two dimensions or more."
                )
            raise unknown("weight matrix", pattern, weight_names(state))
    if not found:
        raise WeightspaceError(
            f"{label}: no weight matrices among {len(state):,} tensors; expected float tensors of two dimensions or "
            "more that are no embeddings. Choose tensors by name (names, --names) if these are called so."
        )


def weight_names(state: StateDict) -> list[str]:
    """Return the names of the tensors of a state dict that have the form of a weight."""
    return [name for name, tensor in state.items() if _is_weight(name, tensor, None)]
