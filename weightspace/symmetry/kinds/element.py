"""Elements of a symmetry group, and their action on tensors.

A group of units is moved by an order (``w'[i] = w[p[i]]``), by an order and signs (``w'[i] = s[i] w[p[i]]`` on axes
with ``±``), by an orthogonal matrix (``w' = Q w``), or, for rotary dimensions, by an angle for each pair
``(i, i + d/2)``. An inner group has one row for each *resulting* unit of its outer group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoints import StateDict, load_checkpoint, load_metadata, save_checkpoint
from weightspace.errors import SpecError
from weightspace.reprs import brief
from weightspace.symmetry.kinds.action import SIGN, Maps, act_on, as_matrices
from weightspace.symmetry.kinds.fold import check_folded
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.permutation import SYMMETRY_DIGEST, check_fits

#: Largest entry of QᵀQ − I in a file.
_TOLERANCE = 1e-6


@brief
@dataclass(frozen=True, eq=False)
class Element:
    """One map for each group of a spec.

    Attributes:
        spec: the spec it belongs to.
        maps: group -> its map: int64 of shape ``(units,)`` for a permutation or a signed one, float64 of shape
            ``(units, units)`` for an orthogonal map, float64 angles in radians of shape ``(units / 2,)`` for phases;
            for an inner group with one more axis in front, the units of its outer group.
        signs: signed group -> int8 of the shape of its map, 1 or −1 for each *resulting* unit; 1 where it is missing.

    Raises:
        SpecError: a group is missing or unknown, or its map or signs have another shape or dtype.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        >>> x = torch.randn(3, 4, dtype=torch.float64)
        >>> spec, before = ws.derive_spec(network, (x,), symmetry="full"), network(x)
        >>> element = ws.Element.random(spec, seed=0)
        >>> _ = network.load_state_dict(element.apply(network.state_dict()))
        >>> torch.allclose(network(x), before)  # the same function
        True
        >>> element.save("element.safetensors")
        >>> torch.equal(ws.Element.load("element.safetensors", spec).signs["layer.0"], element.signs["layer.0"])
        True
    """

    spec: SymmetrySpec
    maps: Mapping[str, Tensor]
    signs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.maps.keys() != self.spec.groups.keys():
            odd = sorted(self.maps.keys() ^ self.spec.groups.keys())
            raise SpecError(f"Element and spec differ in {len(odd)} groups, for example {odd[0]!r}.")
        for group, value in self.maps.items():
            _check_map(self.spec, group, value)
        for group, signs in self.signs.items():
            if self.spec.kinds.get(group) != "signed":
                raise SpecError(f"The element has signs for {group!r}, which is no signed group of the spec.")
            shape = tuple(self.maps[group].shape)
            if tuple(signs.shape) != shape or signs.dtype != torch.int8 or not bool((signs.abs() == 1).all()):
                raise SpecError(
                    f"Group {group!r} needs int8 signs of shape {shape}, all 1 or -1; found {signs.dtype} "
                    f"{tuple(signs.shape)}."
                )

    @classmethod
    def identity(cls, spec: SymmetrySpec) -> Element:
        """Return the element that leaves everything as it is."""
        maps = {group: _identity(spec, group) for group in spec.groups}
        return cls(spec, maps, {group: torch.ones_like(maps[group], dtype=torch.int8) for group in _signed(spec)})

    @classmethod
    def random(cls, spec: SymmetrySpec, *, seed: int) -> Element:
        """Draw a uniformly random map of every group: orders, signs, Haar rotations and reflections, angles.

        Args:
            spec: the spec.
            seed: makes the element reproducible.
        """
        generator = torch.Generator().manual_seed(seed)
        maps = {group: _drawn(spec, group, generator) for group in spec.groups}
        signs = {
            group: (torch.randint(2, maps[group].shape, generator=generator) * 2 - 1).to(torch.int8)
            for group in _signed(spec)
        }
        return cls(spec, maps, signs)

    def apply(self, state: StateDict) -> StateDict:
        """Move the units of a folded checkpoint without changing its function.

        Args:
            state: every tensor of the spec by name, folded.

        Returns:
            New tensors with the same names, shapes and dtypes.

        Raises:
            CheckpointError: a tensor is missing, unknown to the spec, or has another shape.
            SpecError: the checkpoint isn't folded.
        """
        check_fits(self.spec, state)
        check_folded(self.spec.folds, state)
        return {name: self.apply_to(name, tensor) for name, tensor in state.items()}

    def applied(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return folded weights with their units moved, each tensor on access; ``apply`` computes all of them."""
        return _Applied(self, weights)

    def apply_to(self, name: str, tensor: Tensor) -> Tensor:
        """Return one tensor with its units moved."""
        return act_on(self.spec, self.moves, name, tensor)

    @property
    def moves(self) -> Maps:
        """The maps, and the signs under ``±`` and the name of their group."""
        return {**self.maps, **{SIGN + group: signs for group, signs in self.signs.items()}}

    @classmethod
    def of(cls, spec: SymmetrySpec, moves: Maps) -> Element:
        """Return the element with these maps, and with the signs that are under ``±`` and the name of their group."""
        signs = {name.removeprefix(SIGN): value for name, value in moves.items() if name.startswith(SIGN)}
        return cls(spec, {name: value for name, value in moves.items() if not name.startswith(SIGN)}, signs)

    def _mixes(self, group: str) -> bool:
        """Return whether a group is moved by matrices."""
        return self.spec.kinds[group] in ("orthogonal", "phases")

    def inverse(self) -> Element:
        """Return the element that undoes this one."""
        maps, signs = {}, {}
        for group, value in self.maps.items():
            kind = self.spec.kinds[group]
            maps[group] = -value if kind == "phases" else value.mT if self._mixes(group) else value.argsort(-1)
            if group in self.signs:
                signs[group] = self.signs[group].gather(-1, maps[group])
        for inner, outer in self.spec.outer.items():
            back = maps[outer]
            maps[inner] = maps[inner][back]
            if inner in signs:
                signs[inner] = signs[inner][back]
        return Element(self.spec, maps, signs)

    def compose(self, first: Element) -> Element:
        """Return the element that acts like ``first`` and then like this one.

        ``g.compose(h).apply(state)`` equals ``g.apply(h.apply(state))``.

        Raises:
            SpecError: the two belong to different specs.
        """
        if self.spec.digest != first.spec.digest:
            raise SpecError("The two elements belong to different specs and cannot be composed.")
        maps, signs = {}, {}
        for group, value in self.maps.items():
            outer = self.spec.outer.get(group)
            rows = slice(None) if outer is None else self.maps[outer]
            before = first.maps[group][rows]
            kind = self.spec.kinds[group]
            if kind in ("orthogonal", "phases"):
                maps[group] = value @ before if kind == "orthogonal" else value + before
                continue
            maps[group] = before.gather(-1, value)
            if group in self.signs or group in first.signs:
                one = torch.ones_like(value, dtype=torch.int8)
                earlier = first.signs.get(group, one)[rows].gather(-1, value)
                signs[group] = self.signs.get(group, one) * earlier
        return Element(self.spec, maps, signs)

    def save(self, path: str | Path) -> None:
        """Write the element as .safetensors, with the digest of its spec; signs are under ``±`` and the group.

        Raises:
            SpecError: the path has another suffix.
            CheckpointError: the file can't be written.
        """
        if Path(path).suffix != ".safetensors":
            raise SpecError(f"An element is a .safetensors file; found {Path(path).name!r}.")
        tensors = {name: value.contiguous() for name, value in self.moves.items()}
        save_checkpoint(tensors, path, metadata={SYMMETRY_DIGEST: self.spec.digest})

    @classmethod
    def load(cls, path: str | Path, spec: SymmetrySpec) -> Element:
        """Read an element saved for this spec.

        Raises:
            SpecError: the file was saved for another spec, or a matrix in it isn't orthogonal.
        """
        digest = load_metadata(path).get(SYMMETRY_DIGEST)
        if digest != spec.digest:
            if digest is None:
                raise SpecError(
                    f"{path} is not an element: it has no digest of a symmetry spec. "
                    "Expected a file written by `weightspace match` or `save`."
                )
            raise SpecError(
                f"{path} was made for another spec: found {digest[:12]}…, expected {spec.digest[:12]}…. "
                "Is this the network?"
            )
        element = cls.of(spec, load_checkpoint(path))
        for group in spec.groups:
            if element._mixes(group) and not _keeps(spec, group, element.matrix(group)):
                raise SpecError(f"{path}: the map of group {group!r} is not orthogonal, or moves the vector of ones.")
        return element

    def matrix(self, group: str) -> Tensor:
        """Return the map of a group as orthogonal matrices, float64."""
        return as_matrices(self.maps[group], self.spec.groups[group])


@dataclass(frozen=True, eq=False)
class _Applied(Mapping[str, Tensor]):
    """Weights that an element moves on access."""

    element: Element
    weights: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.element.apply_to(name, self.weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def _signed(spec: SymmetrySpec) -> list[str]:
    """Return the signed groups of a spec."""
    return [group for group, kind in spec.kinds.items() if kind == "signed"]


def _lead(spec: SymmetrySpec, group: str) -> tuple[int, ...]:
    """Return the shape before the map of a group: the units of its outer group."""
    outer = spec.outer.get(group)
    return () if outer is None else (spec.groups[outer],)


def _check_map(spec: SymmetrySpec, group: str, value: Tensor) -> None:
    """Check that a map has the shape and dtype that its group needs, and that an order is one."""
    size, kind, lead = spec.groups[group], spec.kinds[group], _lead(spec, group)
    if kind in ("permutation", "signed"):
        shape, fits = (*lead, size), value.dtype == torch.int64
    else:
        shape, fits = (*lead, size, size) if kind == "orthogonal" else (*lead, size // 2), value.is_floating_point()
    if tuple(value.shape) != shape or not fits:
        dtype = "int64" if kind in ("permutation", "signed") else "floating-point"
        raise SpecError(
            f"Group {group!r} ({kind}) needs a {dtype} map of shape {shape}; found {value.dtype} {tuple(value.shape)}."
        )
    if value.dtype == torch.int64 and not torch.equal(
        value.sort(dim=-1).values, torch.arange(size, device=value.device).expand(shape)
    ):
        raise SpecError(f"The map of group {group!r} is not a permutation of 0 … {size - 1}.")


def _keeps(spec: SymmetrySpec, group: str, matrix: Tensor) -> bool:
    """Return whether matrices are orthogonal, and keep the vector of ones where the group fixes it."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    ones = (matrix.sum(-1) - 1).abs().max() if group in spec.fixes_ones else torch.zeros(())
    return bool((matrix @ matrix.mT - eye).abs().max() <= _TOLERANCE) and bool(ones <= _TOLERANCE)


def _identity(spec: SymmetrySpec, group: str) -> Tensor:
    size, kind, lead = spec.groups[group], spec.kinds[group], _lead(spec, group)
    if kind == "orthogonal":
        return torch.eye(size, dtype=torch.float64).expand(*lead, size, size).clone()
    if kind == "phases":
        return torch.zeros(*lead, size // 2, dtype=torch.float64)
    return torch.arange(size).expand(*lead, size).clone()


def _drawn(spec: SymmetrySpec, group: str, generator: torch.Generator) -> Tensor:
    size, kind, lead = spec.groups[group], spec.kinds[group], _lead(spec, group)
    if kind in ("permutation", "signed"):
        return torch.rand(*lead, size, generator=generator, dtype=torch.float64).argsort(-1)
    if kind == "phases":
        return torch.rand(*lead, size // 2, generator=generator, dtype=torch.float64) * 2 * torch.pi
    free = size - (group in spec.fixes_ones)
    q, r = torch.linalg.qr(torch.randn(*lead, free, free, generator=generator, dtype=torch.float64))
    haar = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return haar if free == size else _beside_ones(haar)


def _beside_ones(matrix: Tensor) -> Tensor:
    """Return the map that fixes the vector of ones, and acts on its complement."""
    size = matrix.shape[-1] + 1
    ones = torch.ones(size, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, torch.eye(size, dtype=torch.float64)[:, 1:]], 1)).Q
    whole = torch.zeros(*matrix.shape[:-2], size, size, dtype=torch.float64)
    whole[..., 0, 0] = 1
    whole[..., 1:, 1:] = matrix
    return basis @ whole @ basis.T
