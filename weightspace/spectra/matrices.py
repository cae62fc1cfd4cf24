"""Weight matrices of a network: the tensors that count, and how each is flattened.

The rules only use names and shapes, so they apply to any checkpoint of an architecture, however it was stored.
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
from weightspace.symmetry import PermutationSpec, SymmetrySpec

#: Names of tensors in which queries, keys and values are stacked, in this order.
_FUSED = ("in_proj_weight", "qkv.weight", "qkv_proj.weight", "Wqkv.weight", "c_attn.weight")
#: Name components of look-up or additive tensors; and of linear ones in spite of such a component.
_TABLE = re.compile(r"(^|_)(emb|embed|embedding|embeddings|wte|wpe|pos|position|positional|tokens?)(_|$)")
_LINEAR = re.compile(r"(^|_)(patch|out|proj|projection|mapping)(_|$)")
_NEVER_LINEAR = re.compile(r"^shared$|(^|_)(bias|biases|table)$")


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A weight seen as a matrix.

    Attributes:
        name: name in results: the tensor's name, with ``[q]``, ``[k]`` or ``[v]`` for a third of a fused tensor.
        tensor: name of the tensor that contains it.
        matrix: ``(out, in)``, in the dtype and memory of the tensor.
        aliases: other names of the same matrix in the network, for example of a module used twice.
    """

    name: str
    tensor: str
    matrix: Tensor
    aliases: tuple[str, ...] = ()


def weight_matrices(
    state: StateDict,
    *,
    names: Iterable[str] | None = None,
    spec: PermutationSpec | SymmetrySpec | None = None,
    label: str = "The network",
) -> dict[str, WeightMatrix]:
    """Return the weight matrices of a network by name, in the order of the state dict.

    A 2-d tensor is used as is; a tensor of more dimensions named ``weight``, such as a convolution's, as ``(out,
    in·h·w)``. (A transposed convolution's is ``(in, out·h·w)``, and GPT-2's are ``(in, out)``.) Fused queries, keys and
    values count as three matrices: ``in_proj_weight`` of ``nn.MultiheadAttention``, ``qkv.weight``,
    ``qkv_proj.weight``, ``Wqkv.weight`` and ``c_attn.weight``, if one axis is three times the other; those of GPT-2,
    ``(in, 3·out)``, are transposed. Fused weights of other sizes (grouped queries) or in another order
    (``query_key_value``, by heads) are used whole.

    Embeddings are excluded. They are recognised by the name of the tensor, or of its module if it is called ``weight``:
    a component between underscores is emb, embed, embedding(s), wte, wpe, pos, position, positional or token(s), and
    none is patch, out, proj, projection or mapping; or the last is bias(es) or table, or the whole name is ``shared``.
    Also excluded are tensors of fewer than two dimensions, tensors of more dimensions that aren't called ``weight``
    (positions, scales, stacked experts), and integer, complex and empty ones. An output layer tied to an embedding is
    included as a linear layer.

    The effective weight of a parametrized layer is used, under its name in the module: weight norm, spectral norm and
    pruning are supported, others refused. Names that share memory are one matrix.

    Args:
        state: float tensors of any precision.
        names: names or patterns (``layer4.*``) of the tensors to use instead, including embeddings.
        spec: its statistics are excluded.
        label: name of the network in errors, such as its path.

    Raises:
        WeightspaceError: there are no matrices, or none for a given name, or a weight is under an unsupported
            parametrization.
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
    """Information about one weight matrix of a network."""

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
    """Return pairs of corresponding matrices of two networks by name, in the order of the first.

    A matrix that both networks have under the same two names is listed once; one that only one of them ties, twice.

    Raises:
        CheckpointError: the networks' names or shapes differ.
    """
    ours, theirs = ({name: one for own, one in known.items() for name in (own, *one.aliases)} for known in (a, b))
    first, second = ({name: one.matrix for name, one in known.items()} for known in (ours, theirs))
    check_compatible(first, second)
    return {name: (ours[name], theirs[name]) for name in ours if name in a or name in b}


def _is_weight(name: str, tensor: Tensor, chosen: Sequence[str] | None) -> bool:
    """Return whether a tensor has the form of a weight; one chosen by its full name may have any name."""
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
    """Yield the matrices of a tensor: one, or three if queries, keys and values are fused."""
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
    """Raise unless there are matrices, including some for every chosen name."""
    taken = {name.partition("[")[0] for one in found.values() for name in (one.tensor, *one.aliases)}
    for pattern in chosen or ():
        if not any(fnmatchcase(name, pattern) for name in taken):
            if pattern in state:
                raise WeightspaceError(
                    f"{label}: {pattern!r} is {state[pattern].dtype} of shape {tuple(state[pattern].shape)} and isn't "
                    "a weight matrix; expected a float parameter of at least two dimensions."
                )
            raise unknown("weight matrix", pattern, weight_names(state))
    if not found:
        raise WeightspaceError(
            f"{label}: no weight matrices among {len(state):,} tensors; expected float tensors of at least two "
            "dimensions that aren't embeddings. Choose tensors by name (names, --names) if they look like these."
        )


def weight_names(state: StateDict) -> list[str]:
    """Return the names of the tensors of a state dict that have the form of a weight."""
    return [name for name, tensor in state.items() if _is_weight(name, tensor, None)]
