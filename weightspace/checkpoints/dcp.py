"""Distributed checkpoints of torch (DCP): the model's tensors, with the locations of their chunks.

``.metadata`` names the tensors and their chunks. A chunk is a file of ``torch.save`` within a ``.distcp`` file.
"""

from __future__ import annotations

from pathlib import Path

from weightspace.checkpoints.dcp_metadata import METADATA, DcpMetadata, DcpTensor, Item, read_dcp_metadata
from weightspace.checkpoints.inert_pickle import TORCH_DTYPES, TensorView
from weightspace.checkpoints.metadata import CheckpointMetadata, Piece, Place, TensorInfo
from weightspace.checkpoints.model_part import model_part
from weightspace.checkpoints.piece_coverage import covering
from weightspace.checkpoints.stored_torch_file import read_stored
from weightspace.checkpoints.torch_pickle import Global
from weightspace.errors import CheckpointError


def dcp_contents(path: Path, folder: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of the model in a distributed checkpoint.

    Args:
        path: the checkpoint as the user names it.
        folder: the folder with ``.metadata``, the same or inside it.
        key: the entry that holds the model; see ``model_part``.

    Raises:
        CheckpointError: the checkpoint is damaged, or it isn't clear which tensors are the model's.
        OSError: it cannot be read.
    """
    metadata = read_dcp_metadata(folder)
    part = model_part(path, metadata.paths, metadata.objects, key)
    reader = _Reader(folder, metadata)
    for name, short in part.names.items():
        reader.add(name, short)
    files = (folder / METADATA, *(folder / name for name in sorted(reader.used)))
    own = (reader.tensors, reader.tied, reader.places)
    return CheckpointMetadata(path, files, *own, key, notes=part.notes, pieces=reader.pieces)


class _Reader:
    """Locates the tensors of a distributed checkpoint.

    Attributes:
        tensors: name -> dtype and shape.
        tied: name -> earlier name stored in the same place.
        places: name -> location of a tensor that is stored whole.
        pieces: name -> pieces of a tensor that isn't.
        used: names of the files that hold the tensors.
    """

    def __init__(self, folder: Path, metadata: DcpMetadata) -> None:
        self.folder, self.metadata = folder, metadata
        self.tensors: dict[str, TensorInfo] = {}
        self.tied: dict[str, str] = {}
        self.places: dict[str, Place] = {}
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        self.used: set[str] = set()
        self._owners: dict[object, str] = {}

    def add(self, name: str, short: str) -> None:
        """Locate a tensor and keep it under its name in the model."""
        tensor, label = self.metadata.tensors[name], f"{self.folder}: {name[:120]!r}"
        dtype = TORCH_DTYPES.get(tensor.dtype)
        if dtype is None:
            raise CheckpointError(f"{label} has dtype {tensor.dtype[:80]}, which cannot be merged. Convert it first.")
        items = []
        for offsets, _ in tensor.chunks:
            item = self.metadata.items.get((name, offsets))
            if item is None:
                raise CheckpointError(f"{label}: {METADATA} doesn't say where its chunk at {offsets} is stored.")
            items.append(item)
        self.tensors[short] = TensorInfo(dtype, tensor.shape)
        owner = self._owners.setdefault((tensor, tuple(items)), short)
        if owner != short and 0 not in tensor.shape:
            self.tied[short] = owner
        located = [
            self._piece(label, dtype, offsets, sizes, item)
            for (offsets, sizes), item in zip(tensor.chunks, items, strict=True)
            if 0 not in sizes
        ]
        self._place(label, short, tensor, located)

    def _place(self, label: str, short: str, tensor: DcpTensor, located: list[Piece]) -> None:
        """Keep the location of a tensor, after checking that its chunks cover it."""
        pieces = covering(label, tensor.shape, located)
        if len(pieces) == 1:
            self.places[short] = pieces[0].place
            return
        if any(piece.place.strides is not None for piece in pieces):
            raise CheckpointError(f"{label}: a chunk's elements aren't in row-major order, which is not read.")
        self.pieces[short] = pieces

    def _piece(self, label: str, dtype: str, offsets: tuple[int, ...], sizes: tuple[int, ...], item: Item) -> Piece:
        """Return a chunk with the location of its elements."""
        path = self.folder / item.file
        if not path.is_file():
            raise CheckpointError(f"{label}: {path} is missing. Copy all files of the checkpoint.")
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            if item.start + item.length > end:
                raise CheckpointError(
                    f"{path} has {end:,} bytes, but {METADATA} places {item.length:,} at {item.start:,}. Did every "
                    "rank finish writing? Copy it again."
                )
            stored = read_stored(file, path, allows=_is_of_tensors, start=item.start, length=item.length)
        self.used.add(item.file)
        if not isinstance(stored.value, TensorView):
            raise CheckpointError(f"{label}: {path} holds a {type(stored.value).__name__} at byte {item.start:,}.")
        info, place = stored.tensor(stored.value)
        plain = [tuple(size for size in shape if size != 1) for shape in (info.shape, sizes)]
        if info.dtype != dtype or plain[0] != plain[1]:
            raise CheckpointError(
                f"{label}: {path} holds {info.dtype} {info.shape} at byte {item.start:,}, but {METADATA} promises "
                f"{dtype} {sizes}. Are they of one checkpoint?"
            )
        if place.strides is not None and info.shape != sizes:
            raise CheckpointError(f"{label}: a chunk's elements aren't in row-major order, which is not read.")
        return Piece(place, offsets, sizes)


def _is_of_tensors(name: Global) -> bool:
    """Return whether a name occurs in the pickle of a single tensor."""
    if name.module in ("torch._utils", "torch._tensor", "torch.nn.parameter", "torch.storage"):
        return True
    plain = name.name in TORCH_DTYPES or name.name == "Size" or name.name.endswith("Storage")
    return name == ("collections", "OrderedDict") or (name.module == "torch" and plain)
