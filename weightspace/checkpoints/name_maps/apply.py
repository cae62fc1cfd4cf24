"""Apply a name map to the metadata of a checkpoint; tensors are fused and split when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightspace.checkpoints.detection import weight_files
from weightspace.checkpoints.json_file import read_optional_json_object
from weightspace.checkpoints.metadata import AssembledTensor, CheckpointMetadata, CopiedPiece, TensorInfo
from weightspace.checkpoints.name_maps.name_map import NameMap, Rule
from weightspace.checkpoints.name_maps.strides import cut_boxes, joined_boxes, strides_of
from weightspace.errors import CheckpointError

#: Float dtypes that tensors of several dtypes are joined in, as all of their numbers are in it.
_WIDE, _NARROW = "F32", frozenset({"F32", "F16", "BF16"})

#: Names that an error lists.
_LISTED = 3


@dataclass(frozen=True)
class Mapped:
    """A checkpoint under the names of a side of a map.

    Attributes:
        contents: its metadata.
        renamed: number of tensors with another name.
        joined: number of tensors that are made of several.
        parts: number of tensors that these are made of.
        split: number of tensors that are split into several.
        left_out: names of tensors without a counterpart.
        kept: names of tensors that no rule matches.
        example: an old and a new name, or None if nothing changes.
    """

    contents: CheckpointMetadata
    renamed: int
    joined: int
    parts: int
    split: int
    left_out: tuple[str, ...]
    kept: tuple[str, ...]
    example: tuple[str, str] | None

    def describe(self) -> str:
        """Return what has changed: ``12 tensors renamed, 24 joined into 12``."""
        counts = [f"{self.renamed:,} renamed"] if self.renamed else []
        counts += [f"{self.parts:,} joined into {self.joined:,}"] if self.joined else []
        counts += [f"{self.split:,} split"] if self.split else []
        counts += [f"{len(self.left_out):,} left out, such as {self.left_out[0]}"] if self.left_out else []
        old, new = self.example or ("", "")
        kept = f"; {len(self.kept):,} keep their names, such as {self.kept[0]}" if self.kept else ""
        return f"{', '.join(counts)} (such as {old} to {new}){kept}" if counts else "nothing changes"


def side_of(contents: CheckpointMetadata, name_map: NameMap) -> int | None:
    """Return the side of a map that a checkpoint's names are on: the one that matches more of them, or more closely."""
    scores = []
    for side in (0, 1):
        patterns = [pattern for rule in name_map.rules for pattern in rule.sides[side]]
        matching = ((one.literal for one in patterns if one.match(name) is not None) for name in contents.tensors)
        found = [literal for each in matching if (literal := max(each, default=-1)) >= 0]
        scores.append((len(found), sum(found)))
    return None if scores[0] == scores[1] else scores.index(max(scores))


def mapped(
    contents: CheckpointMetadata, name_map: NameMap, side: int, config: Mapping[str, Any] | None = None
) -> Mapped:
    """Return a checkpoint under the names of a side of a map; no tensor is read.

    Args:
        contents: its metadata.
        name_map: the map.
        side: index of the side; the names are on the other one.
        config: its configuration; None reads the one beside its weights.

    Raises:
        CheckpointError: a tensor is matched twice or not at all where all must be, parts of one are missing, shapes do
            not fit, two tensors get one name, or the names would not come back by the map's other direction.
    """
    config = _config(contents) if config is None else config
    kind = config.get("model_type")
    if name_map.model_types and kind is not None and kind not in name_map.model_types:
        raise CheckpointError(
            f"{contents.path}: the map {name_map.title} is for models of the type {', '.join(name_map.model_types)}; "
            f"found {str(kind)[:80]!r}, whose layout may be another one. If it is the same, write a map of your own."
        )
    found = _Conversion(contents, name_map, side, config).made()
    back = _Conversion(found.contents, name_map, 1 - side, config, is_check=True).made().contents
    gone = set(found.left_out)
    for name, info in contents.tensors.items():
        if name not in gone and back.tensors.get(name) != info and not _widened(back.tensors.get(name), info):
            raise CheckpointError(
                f"{contents.path}: the map {name_map.title} is not one-to-one here: by its other direction, "
                f"{name!r} {'comes back otherwise' if name in back.tensors else 'does not come back'}. "
                f"Are some of its names those of the side {name_map.sides[side]!r} already?"
            )
    return found


def _widened(found: TensorInfo | None, info: TensorInfo) -> bool:
    """Return whether a tensor came back with its shape, but in the wider dtype of those that it was joined with."""
    return found is not None and found.shape == info.shape and found.dtype == _WIDE


class _Conversion:
    """The conversion of one checkpoint to one side of a map."""

    def __init__(
        self,
        contents: CheckpointMetadata,
        name_map: NameMap,
        side: int,
        config: Mapping[str, Any],
        *,
        is_check: bool = False,
    ) -> None:
        self.contents, self.map, self.side, self.config = contents, name_map, side, config
        self.is_check = is_check
        self.tensors: dict[str, TensorInfo] = {}
        self.assembled: dict[str, AssembledTensor] = {}
        self.names: dict[str, str] = {}
        self.joined: dict[str, dict[tuple[int, int], str]] = {}
        self.rules: dict[str, Rule] = {}
        self.split = 0
        self.left_out: list[str] = []
        self.kept: list[str] = []

    def made(self) -> Mapped:
        """Return the checkpoint under its new names."""
        for name in self.contents.tensors:
            hits = [
                (rule, part, values)
                for rule in self.map.rules
                for part, pattern in enumerate(rule.sides[1 - self.side])
                if (values := pattern.match(name)) is not None
            ]
            if len(hits) > 1:
                listed = " and ".join(repr(rule.sides[1 - self.side][part].text) for rule, part, _ in hits[:2])
                raise self._error(f"matches {name!r} twice, by {listed}")
            if not hits and any(pattern.match(name) is not None for pattern in self.map.left_out[1 - self.side]):
                self.left_out.append(name)
                continue
            if not hits:
                self.kept.append(name)
                self._keep(name, name)
                continue
            self._convert(name, *hits[0])
        if self.kept and self.map.complete and not self.is_check:
            more = f" and {len(self.kept) - _LISTED:,} more" if len(self.kept) > _LISTED else ""
            raise self._error(f"has no rule for {', '.join(map(repr, self.kept[:_LISTED]))}{more}, but must match all")
        for name, parts in self.joined.items():
            self._join(self.rules[name], name, parts)
        return self._mapped()

    def _mapped(self) -> Mapped:
        contents = self.contents
        tied = {
            self.names[name]: self.names[owner]
            for name, owner in contents.tied.items()
            if {name, owner} <= self.names.keys()
        }
        new = replace(
            contents,
            tensors=self.tensors,
            tied=tied,
            places={new: contents.places[old] for old, new in self.names.items() if old in contents.places},
            renamed={new: contents.renamed.get(old, old) for old, new in self.names.items()},
            quantised={new: contents.quantised[old] for old, new in self.names.items() if old in contents.quantised},
            pieces={new: contents.pieces[old] for old, new in self.names.items() if old in contents.pieces},
            assembled={
                **{new: contents.assembled[old] for old, new in self.names.items() if old in contents.assembled},
                **self.assembled,
            },
        )
        changed = [(old, new) for old, new in self.names.items() if old != new]
        pairs = [*changed, *((one.sources[0], name) for name, one in self.assembled.items())]
        parts = sum(len(own) for own in self.joined.values())
        return Mapped(
            *(new, len(changed), len(self.joined), parts, self.split, tuple(self.left_out), tuple(self.kept)),
            next(iter(pairs), None),
        )

    def _convert(self, name: str, rule: Rule, part: int, values: Mapping[str, str]) -> None:
        """Convert a tensor that a pattern of a rule matches."""
        to = rule.sides[self.side]
        if not rule.renames and self.contents.tensors[name].dtype.startswith("C"):
            raise self._error(f"matches {name!r}, which is complex; expected real numbers")
        if rule.renames:
            self._keep(name, to[0].name(values))
        elif rule.ones:
            self._reshape(name, to[0].name(values), rule.ones if self.side == 1 else -rule.ones)
        elif rule.fused == self.side:
            fused = to[0].name(values)
            number = int(values[rule.each]) if rule.each is not None else 0
            if self.rules.get(fused) is not rule:
                self._add(fused, self.contents.tensors[name], name)  # replaced when all parts are known
                self.joined[fused], self.rules[fused] = {}, rule
            self.joined[fused][number, part] = name
        else:
            self._split(name, rule, values)

    def _keep(self, old: str, new: str) -> None:
        self._add(new, self.contents.tensors[old], old)
        self.names[old] = new

    def _reshape(self, old: str, new: str, ones: int) -> None:
        """Add dimensions of size 1 at the end, or remove them."""
        info = self.contents.tensors[old]
        if ones < 0 and set(info.shape[ones:]) != {1}:
            raise self._error(
                f"expects {-ones} dimensions of size 1 at the end of {old!r}, whose shape is {info.shape}"
            )
        shape = (*info.shape, *(1,) * ones) if ones > 0 else info.shape[:ones]
        strides = strides_of(shape)
        self._assemble(new, TensorInfo(info.dtype, shape), [CopiedPiece(old, shape, strides, 0, strides, 0)], old)

    def _split(self, name: str, rule: Rule, values: Mapping[str, str]) -> None:
        """Split a tensor into its parts."""
        info = self.contents.tensors[name]
        try:
            boxes = cut_boxes(rule, info.shape, self.config)
        except CheckpointError as error:
            raise self._error(f"{name!r} {error}") from None
        for number, parts in enumerate(boxes):
            for pattern, box in zip(rule.sides[self.side], parts, strict=True):
                own = {**values, **({rule.each: str(number)} if rule.each is not None else {})}
                self._assemble(pattern.name(own), TensorInfo(info.dtype, box.part_shape), [box.cut(name)], name)
        self.split += 1

    def _join(self, rule: Rule, name: str, parts: Mapping[tuple[int, int], str]) -> None:
        """Make a fused tensor of its parts."""
        sides, number = rule.sides[1 - self.side], 1 + max(index for index, _ in parts)
        for index in range(number):
            for part, pattern in enumerate(sides):
                if (index, part) not in parts:
                    known = next(iter(parts.values()))
                    counted = "" if rule.each is None else f"{{{rule.each}}}"
                    missing = pattern.text.replace(counted, str(index)) if counted else pattern.text
                    raise self._error(f"needs {missing!r} beside {known!r}, which this model lacks")
        listed = [[parts[index, part] for part in range(len(sides))] for index in range(number)]
        infos = [[self.contents.tensors[own] for own in row] for row in listed]
        shapes = [tuple(info.shape for info in row) for row in infos]
        try:
            if len(set(shapes)) > 1:
                raise CheckpointError(f"have several shapes: {', '.join(map(str, dict.fromkeys(shapes)))}")
            shape, boxes = joined_boxes(rule, shapes[0], number, self.config)
        except CheckpointError as error:
            raise self._error(f"{', '.join(map(repr, listed[0]))} {error}") from None
        dtypes = {info.dtype for row in infos for info in row}
        if len(dtypes) > 1 and not dtypes <= _NARROW:
            raise self._error(
                f"{', '.join(map(repr, listed[0]))} have the dtypes {', '.join(sorted(dtypes))}; expected one"
            )
        dtype = dtypes.pop() if len(dtypes) == 1 else _WIDE
        pieces = [
            box.joined(own)
            for row, named in zip(boxes, listed, strict=True)
            for box, own in zip(row, named, strict=True)
        ]
        self.tensors[name] = TensorInfo(dtype, shape)
        self.assembled[name] = AssembledTensor(tuple(pieces), self.contents)

    def _assemble(self, name: str, info: TensorInfo, pieces: list[CopiedPiece], old: str) -> None:
        self._add(name, info, old)
        self.assembled[name] = AssembledTensor(tuple(pieces), self.contents)

    def _add(self, name: str, info: TensorInfo, old: str) -> None:
        if name in self.tensors:
            raise self._error(f"gives {old!r} the name {name!r}, which another tensor has, too")
        self.tensors[name] = info

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.contents.path}: the map {self.map.title}: {problem}.")


def _config(contents: CheckpointMetadata) -> Mapping[str, Any]:
    """Return the configuration beside a checkpoint's weights, or an empty one."""
    path = contents.path
    folder = path / contents.components[0].folder if contents.components else path.parent
    if not contents.components:
        try:
            is_own = path in weight_files(folder)
        except CheckpointError:
            is_own = False
        if not is_own:
            return {}
    return read_optional_json_object(folder / "config.json")
