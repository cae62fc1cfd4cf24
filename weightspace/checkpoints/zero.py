"""DeepSpeed checkpoints of ZeRO stages 0 to 3: the float32 master weights, put together from all ranks' partitions.

In stages 1 and 2, each group of parameters is one vector that is cut into a partition per rank. In stage 3, each
parameter is cut by itself, and a rank's partitions follow each other. Nothing but tensors' locations is read.

Source:
    ``deepspeed/utils/zero_to_fp32.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from weightspace.checkpoints.inert_pickle import Record, TensorView, is_data
from weightspace.checkpoints.metadata import CheckpointMetadata, Piece, Place, TensorInfo
from weightspace.checkpoints.piece_coverage import covering
from weightspace.checkpoints.safetensors_header import ITEMSIZES
from weightspace.checkpoints.stored_torch_file import StoredTorchFile, read_stored
from weightspace.errors import CheckpointError

#: Endings of the files of the model and of the optimizer.
MODEL, OPTIMIZER = "_model_states.pt", "_optim_states.pt"

#: Names of the files that are read: the rank of data parallelism, if there is one, and that of tensor parallelism.
_NAME = re.compile(r"(?:bf16_)?(?:zero_pp_rank_(?P<rank>\d+)_)?mp_rank_(?P<model>\d+)_(?:model|optim)_states\.pt")


@dataclass(frozen=True)
class _Flat:
    """A 1-D tensor in a file: dtype, location and number of elements."""

    dtype: str
    place: Place
    size: int


def zero_contents(path: Path, folder: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of the model in a DeepSpeed checkpoint.

    Args:
        path: the checkpoint as the user names it.
        folder: the folder with the ranks' files, the same or inside it.
        key: must be None or ``""``: there is one model.

    Raises:
        CheckpointError: the checkpoint is damaged or incomplete, or of a mixture of experts or tensor parallelism.
        OSError: it cannot be read.
    """
    if key:
        raise CheckpointError(f"{path} is a DeepSpeed checkpoint, which has one model. Leave --key {key} (key=…) out.")
    files = [_opened(file) for file in (*_files(folder, MODEL), *_files(folder, OPTIMIZER))]
    models = [file for file in files if file.path.name.endswith(MODEL)]
    reader = _Reader(folder, models, [file for file in files if file.path.name.endswith(OPTIMIZER)])
    stage = reader.add_all()
    own = (reader.tensors, reader.tied, reader.places)
    note = f"{path} is a DeepSpeed checkpoint of ZeRO stage {stage}: its {len(reader.tensors):,} tensors are taken."
    if stage:
        note = f"{note[:-1]}, in float32 where they were trained. Left out: the optimizer's other states."
    return CheckpointMetadata(path, tuple(file.path for file in files), *own, notes=(note,), pieces=reader.pieces)


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files of all ranks by rank."""
    ranks: dict[int, Path] = {}
    for path in sorted(folder.glob(f"*{ending}")):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise CheckpointError(f"{path} is part of a mixture of experts or a pipeline, which is not read. {_HINT}")
        if int(match["model"]):
            raise CheckpointError(f"{path} is part of a tensor-parallel model, which is not read. {_HINT}")
        other = ranks.setdefault(int(match["rank"] or 0), path)
        if other != path:
            raise CheckpointError(f"{folder} has two files of one rank: {other.name}, {path.name}.")
    missing = next((rank for rank in range(len(ranks)) if rank not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{folder} lacks the file *{ending} of rank {missing}. Copy all files of the checkpoint.")
    return [ranks[rank] for rank in sorted(ranks)]


_HINT = "Convert it with DeepSpeed's ds_to_universal.py or your trainer."


def _opened(path: Path) -> StoredTorchFile:
    """Return the content of a file of a rank."""
    with open(path, "rb") as file:
        stored = read_stored(file, path, allows=is_data)
    if not isinstance(stored.value, dict):
        raise CheckpointError(f"{path} holds a {type(stored.value).__name__}, expected DeepSpeed's dict.")
    return stored


class _Reader:
    """Locates the tensors of a DeepSpeed checkpoint, in the order of ``zero_to_fp32.py``."""

    def __init__(self, folder: Path, models: Sequence[StoredTorchFile], optimizers: Sequence[StoredTorchFile]) -> None:
        if not models:
            raise CheckpointError(f"{folder} has no file *{MODEL}. Copy all files of the checkpoint.")
        self.folder, self.models, self.optimizers = folder, models, optimizers
        self.tensors: dict[str, TensorInfo] = {}
        self.tied: dict[str, str] = {}
        self.places: dict[str, Place] = {}
        self.pieces: dict[str, tuple[Piece, ...]] = {}

    def add_all(self) -> int:
        """Locate all tensors, and return the stage."""
        states = [_entry(file, file.value, "optimizer_state_dict", dict) for file in self.optimizers]
        first = states[0] if states else {}
        stage = self.stage(first)
        model = self.models[0]
        if stage == 0:
            self.add_stored(model, _entry(model, model.value, "module", dict))
            return 0
        self.check_ranks(first)
        names = _entry(model, model.value, "buffer_names", list)
        module = _entry(model, model.value, "module", dict)
        self.add_stored(model, {name: value for name, value in module.items() if name in names})
        shapes = _shapes(model, _entry(model, model.value, "param_shapes", list))
        key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
        groups = [
            [_flat(file, view) for view in _entry(file, state, key, list)]
            for file, state in zip(self.optimizers, states, strict=True)
        ]
        if any(len(own) != len(groups[0]) for own in groups):
            raise CheckpointError(f"{self.folder}: the ranks have different numbers of parameter groups.")
        self.add_frozen(model, stage)
        if stage == 3:
            self.add_stage_3({name: shape for group in shapes for name, shape in group.items()}, groups)
        else:
            self.add_stage_2(shapes, groups, first.get("param_alignment_paddings"))
        for name, owner in _entry(model, model.value, "shared_params", dict).items():
            if owner in self.tensors and isinstance(name, str) and name not in self.tensors:
                self.tie(name, owner)
        self.add_rest(model, module, stage)
        return stage

    def stage(self, state: Mapping[str, Any]) -> int:
        """Return the stage of ZeRO from an optimizer's state."""
        stage = state.get("zero_stage", 0)
        stage = stage.arguments[0] if isinstance(stage, Record) and stage.arguments else stage
        if type(stage) is not int or not 0 <= stage <= 3:
            raise CheckpointError(f"{self.folder}: ZeRO stage {stage!s:.20} is not known; expected 0, 1, 2 or 3.")
        return stage

    def check_ranks(self, state: Mapping[str, Any]) -> None:
        """Check that the files of all ranks are there."""
        count = state.get("partition_count")
        count = max(count) if isinstance(count, list) and count else count
        if count != len(self.optimizers):
            raise CheckpointError(
                f"{self.folder}: expected {count!s:.20} files *{OPTIMIZER}, one per rank; found "
                f"{len(self.optimizers)}. Copy all files of the checkpoint."
            )

    def add_stored(self, file: StoredTorchFile, state: Mapping[Any, Any]) -> None:
        """Keep the tensors of a state dict in a file."""
        for name, view in state.items():
            if isinstance(view, TensorView) and isinstance(name, str):
                self.tensors[name], self.places[name] = file.tensor(view)

    def add_rest(self, file: StoredTorchFile, module: Mapping[Any, Any], stage: int) -> None:
        """Keep the module's other tensors, which DeepSpeed may not list as frozen; stage 3 has none of them whole."""
        rest = {name: view for name, view in module.items() if name not in self.tensors}
        if stage < 3:
            self.add_stored(file, rest)
        elif lost := next((name for name, view in rest.items() if isinstance(view, TensorView)), None):
            raise CheckpointError(f"{self.folder}: {lost!r} is in the module, but not in the ranks' partitions.")

    def tie(self, name: str, owner: str) -> None:
        """Keep a tensor that is stored under another name."""
        self.tensors[name], self.tied[name] = self.tensors[owner], owner
        if owner in self.places:
            self.places[name] = self.places[owner]
        else:
            self.pieces[name] = self.pieces[owner]

    def add_pieces(self, name: str, shape: tuple[int, ...], pieces: Iterator[tuple[_Flat, int, int, int]]) -> None:
        """Keep a tensor that consists of ranges of flat tensors.

        Args:
            name: its name.
            shape: its shape.
            pieces: flat tensor, index of the first element there and in this tensor, and number of elements.
        """
        numel, label = math.prod(shape), f"{self.folder}: {name[:120]!r}"
        found = [(flat.dtype, _piece(flat, *numbers)) for flat, *numbers in pieces]
        dtypes = {dtype for dtype, _ in found} or {"F32"}
        if len(dtypes) > 1:
            raise CheckpointError(f"{label}: its partitions have different dtypes: {', '.join(sorted(dtypes))}.")
        covered = covering(label, (numel,), [piece for _, piece in found])
        self.tensors[name] = TensorInfo(dtypes.pop(), shape)
        if len(covered) == 1:
            self.places[name] = covered[0].place
        else:
            self.pieces[name] = covered

    def add_frozen(self, model: StoredTorchFile, stage: int) -> None:
        """Keep the parameters that weren't trained."""
        shapes = model.value.get("frozen_param_shapes") or {}
        fragments = [_entry(one, one.value, "frozen_param_fragments", dict) for one in self.models] if shapes else []
        for name, shape in _shapes(model, [shapes])[0].items():
            if stage < 3:
                self.add_stored(model, {name: fragments[0].get(name)})
                continue
            flats = [_flat(one, own.get(name)) for one, own in zip(self.models, fragments, strict=True)]
            starts = [0, *accumulate(flat.size for flat in flats)]
            numel = math.prod(shape)
            self.add_pieces(
                name,
                shape,
                ((flat, 0, start, min(flat.size, numel - start)) for flat, start in zip(flats, starts, strict=False)),
            )

    def add_stage_2(
        self, shapes: Sequence[Mapping[str, tuple[int, ...]]], groups: Sequence[Sequence[_Flat]], paddings: Any
    ) -> None:
        """Keep the trained parameters of stages 1 and 2."""
        if len(shapes) != len(groups[0]):
            raise CheckpointError(f"{self.folder}: found {len(groups[0])} parameter groups, expected {len(shapes)}.")
        for number, group in enumerate(shapes):
            flats = [own[number] for own in groups]
            gaps = paddings[number] if isinstance(paddings, list) and len(paddings) == len(shapes) else [0] * len(group)
            if len(gaps) != len(group) or not all(type(gap) is int and gap >= 0 for gap in gaps):
                raise CheckpointError(f"{self.folder}: the paddings of group {number} don't fit its parameters.")
            at = 0
            for (name, shape), gap in zip(group.items(), gaps, strict=True):
                self.add_pieces(name, shape, _ranges(flats, at, at + math.prod(shape)))
                at += math.prod(shape) + gap
            self.check_consumed(at, sum(flat.size for flat in flats), 2 * len(flats))

    def add_stage_3(self, shapes: Mapping[str, tuple[int, ...]], groups: Sequence[Sequence[_Flat]]) -> None:
        """Keep the trained parameters of stage 3."""
        at, ranks = 0, len(groups)
        for name, shape in shapes.items():
            numel = math.prod(shape)
            part = math.ceil(numel / ranks)
            self.add_pieces(name, shape, _partitions(groups, at, part, numel))
            at += part
        self.check_consumed(at * ranks, sum(flat.size for flat in groups[0]) * ranks, 1)

    def check_consumed(self, used: int, stored: int, multiple: int) -> None:
        """Check that the parameters take up the partitions, apart from padding to a multiple."""
        if -(-used // multiple) != -(-stored // multiple):
            raise CheckpointError(
                f"{self.folder}: the parameters have {used:,} elements, but the partitions {stored:,}. Are all files "
                "of one checkpoint?"
            )


def _partitions(
    groups: Sequence[Sequence[_Flat]], start: int, part: int, numel: int
) -> Iterator[tuple[_Flat, int, int, int]]:
    """Yield the pieces of a parameter of stage 3, whose partition starts at an index into every rank's elements."""
    for rank, flats in enumerate(groups):
        first = rank * part
        for flat, source, target, count in _ranges(flats, start, start + min(part, numel - first)):
            yield flat, source, first + target, count


def _ranges(flats: Sequence[_Flat], start: int, stop: int) -> Iterator[tuple[_Flat, int, int, int]]:
    """Yield the pieces of a range of consecutive flat tensors."""
    begin = 0
    for flat in flats:
        low, high = max(start, begin), min(stop, begin + flat.size)
        if low < high:
            yield flat, low - begin, low - start, high - low
        begin += flat.size


def _piece(flat: _Flat, source: int, target: int, count: int) -> Piece:
    """Return a piece of a tensor that is a range of a flat one."""
    return Piece(Place(flat.place.file, flat.place.start + source * ITEMSIZES[flat.dtype]), (target,), (count,))


def _entry(file: StoredTorchFile, content: Mapping[Any, Any], key: str, kind: type) -> Any:
    """Return an entry of a file.

    Raises:
        CheckpointError: it is missing, or of another type.
    """
    value = content.get(key)
    if not isinstance(value, kind):
        found = "none" if value is None else f"a {type(value).__name__}"
        raise CheckpointError(f"{file.path}: expected {key!r}, a {kind.__name__}; found {found}.")
    return value


def _flat(file: StoredTorchFile, view: Any) -> _Flat:
    """Return a flat tensor of a file."""
    if not isinstance(view, TensorView) or not view.is_contiguous:
        raise CheckpointError(f"{file.path}: a partition isn't a contiguous tensor.")
    info, place = file.tensor(view)
    return _Flat(info.dtype, place, info.numel)


def _shapes(file: StoredTorchFile, groups: Sequence[Any]) -> list[dict[str, tuple[int, ...]]]:
    """Return the shapes of parameters by name, for each group."""
    shapes: list[dict[str, tuple[int, ...]]] = []
    for group in groups:
        for name, shape in group.items() if isinstance(group, dict) else [(None, None)]:
            sizes = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 2**62 for size in shape)
            if not isinstance(name, str) or not sizes:
                raise CheckpointError(f"{file.path}: the shapes of the parameters are damaged.")
        shapes.append({name: tuple(shape) for name, shape in group.items()})
    return shapes
