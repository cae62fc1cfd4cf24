"""Symbolic evaluation of the pickle in a torch file: its storages and views, without unpickling.

torch trusts the lengths in the pickle: a view beyond the end of its storage exposes whatever follows in the file or in
memory. So the pickle is first evaluated here, with the instructions that torch supports and symbols for values; no
object is created and no function is called.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Largest pickle in bytes; a hundred thousand tensors take some 15 million.
MAX_PICKLE = 20_000_000

#: Upper bound on the memory of its objects in bytes, and bytes per object created by each instruction.
_MAX_MEMORY = 600_000_000
_COSTS = {b"]": 64, b"}": 72, b"(": 130, b"\x8f": 224, b"\x85": 64, b"\x86": 64, b"\x87": 72, b"R": 250, b"\x81": 250}

#: Total bytes that views in a file may repeat (by ``expand``) beyond the size of their storages.
_MAX_EXPANDED = 2**27

_MAX_DEPTH = 100
_MAX_DIMENSIONS = 64

#: Storage type -> bytes per element.
_ITEMSIZES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
    **{"ComplexDoubleStorage": 16, "ComplexFloatStorage": 8, "UntypedStorage": 1},
    **{"QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1, "QUInt2x4Storage": 1},
}

#: Functions that create a view of a storage: (storage, offset, size, stride, …).
VIEWS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")

#: Functions that create a tensor from tensors.
_TENSORS = (
    *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_sparse_tensor"),
    *("_rebuild_meta_tensor_no_storage", "_rebuild_device_tensor_from_cpu_tensor"),
)

#: Functions that torch would call and that allocate or expose memory without a storage.
REFUSED = ("bytearray", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass", "_rebuild_device_tensor_from_numpy")


class TorchPickleError(ValueError):
    """A problem with a pickle, described in a few words.

    Attributes:
        hint: advice, as a sentence.
    """

    def __init__(self, problem: str, hint: str = "Copy it again.") -> None:
        super().__init__(problem)
        self.hint = hint


class Global(NamedTuple):
    """A global name that the pickle imports."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """A storage as claimed by a pickle: its name in the file, bytes per element, total size, and type."""

    key: str
    itemsize: int
    nbytes: int
    kind: str


@dataclass
class Claims:
    """The claims of a pickle.

    Attributes:
        storages: storages by name.
        value: symbolic value of the pickle; numbers, strings, tuples and lists are themselves.
        end: offset of the bytes after the pickle.
    """

    storages: dict[str, Storage] = field(default_factory=dict)
    value: Any = None
    end: int = 0


class PickledTuple(tuple[Any, ...]):
    """A tuple with a known nesting depth, since hashing a deep one crashes the process."""

    depth = 1


#: Symbols for a tensor, and for any other value that isn't plain.
_TENSOR, _OPAQUE = object(), object()

_EMPTY = PickledTuple()


def check_memory(content: bytes, most: int = MAX_PICKLE, memory: int = _MAX_MEMORY) -> None:
    """Check that a pickle doesn't create more objects than fit in memory.

    Args:
        content: the pickle.
        most: largest pickle in bytes.
        memory: upper bound on the memory of its objects in bytes.

    Raises:
        TorchPickleError: it does.
    """
    needed = 12 * len(content) + sum(cost * content.count(code) for code, cost in _COSTS.items())
    if len(content) > most or needed > memory:
        raise TorchPickleError(f"its pickle of {len(content):,} bytes creates more objects than fit in memory")


def follow_pickle(content: bytes, start: int = 0) -> Claims:
    """Evaluate a pickle symbolically and return its claims.

    Args:
        content: bytes that contain the pickle.
        start: offset of the pickle.

    Raises:
        TorchPickleError: the pickle is damaged or needs code to be run, or a view exceeds its storage.
    """
    machine = PickleMachine(content, start)
    try:
        machine.run()
    except TorchPickleError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise TorchPickleError(f"its pickle is damaged ({type(error).__name__} at byte {machine.at:,})") from error
    return machine.claims


class PickleMachine:
    """Interpreter of pickle instructions, limited to those of torch's ``weights_only`` unpickler."""

    def __init__(self, content: bytes, start: int) -> None:
        self.content = content
        self.at = start
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.expanded = 0
        self.claims = Claims()

    def run(self) -> None:
        """Evaluate the pickle to its end."""
        if self.content[self.at : self.at + 1] == b"\x80" and self.content[self.at + 1 : self.at + 2] in _LATER:
            protocol = self.content[self.at + 1]
            raise TorchPickleError(
                f"it is a pickle of protocol {protocol}, which torch cannot read without running its code",
                "Save its state dict again with torch.save, without pickle_protocol.",
            )
        while True:
            code = self.content[self.at]
            self.at += 1
            if code == STOP:
                self.claims.value, self.claims.end = self.stack.pop(), self.at
                return
            INSTRUCTIONS[code](self)

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        taken = self.content[self.at : self.at + length]
        if len(taken) != length:
            raise TorchPickleError("its pickle is truncated")
        self.at += length
        return taken

    def number(self, code: str) -> int:
        """Return the next number."""
        (value,) = struct.unpack(code, self.take(struct.calcsize(code)))
        return value

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Start a new stack at a mark."""
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Return the stack since the mark and continue with the previous one."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def tuple_of(self, items: list[Any]) -> None:
        """Push a tuple."""
        made = PickledTuple(items)
        for item in items:
            if type(item) is PickledTuple and item.depth >= made.depth:
                made.depth = item.depth + 1
        if made.depth > _MAX_DEPTH:
            raise TorchPickleError(f"its tuples are nested more than {_MAX_DEPTH} deep")
        self.push(made)

    def last(self, count: int) -> list[Any]:
        """Pop the last values from the stack."""
        if len(self.stack) < count:
            raise TorchPickleError("its pickle is damaged")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def extend(self, items: list[Any]) -> None:
        """Add values to the container below them."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def import_name(self) -> None:
        """Push a global name that torch would look up."""
        module, name, _ = self.content[self.at : self.at + 1000].split(b"\n", 2)
        self.at += len(module) + len(name) + 2
        self.push(Global(module.decode(), name.decode()))

    def call(self) -> None:
        """Evaluate a call symbolically."""
        function, arguments = self.last(2)
        self.push(self.result(function, arguments))

    def result(self, function: Any, arguments: Any) -> Any:
        """Return the symbolic result of a function for arguments."""
        if not isinstance(function, Global) or type(arguments) is not PickledTuple:
            raise TorchPickleError("it calls something that isn't a function")
        module, name = function
        if name in REFUSED or (module.startswith("torch") and name.endswith("Tensor")):
            raise TorchPickleError(f"it creates something that isn't part of a checkpoint ({module}.{name})")
        if module == "torch._tensor" and name == "_rebuild_from_type_v2":
            return self.result(arguments[0], arguments[2])
        if module == "torch._utils" and name in VIEWS:
            self.check_view(arguments, _itemsize_of(arguments[6]) if name == "_rebuild_tensor_v3" else None)
            return _TENSOR
        if name in _TENSORS or name == "Parameter":
            return _TENSOR
        return arguments[0] if function == ("torch", "Size") and arguments else _OPAQUE

    def build(self) -> None:
        """Evaluate the setting of an object's state."""
        thing, _ = self.last(2)
        if thing is _TENSOR:
            raise TorchPickleError("it modifies a tensor after its creation, as torch before 0.4 did")
        self.push(thing)

    def load_storage(self) -> None:
        """Record a requested storage."""
        kind, storage_type, key, _, count, *view = self.stack.pop()
        if kind not in ("storage", b"storage") or not isinstance(key, str) or not _is_size(count):
            raise TorchPickleError("it requests something that isn't a storage")
        itemsize = _ITEMSIZES.get(storage_type.name)
        if itemsize is None:
            raise TorchPickleError(f"it requests a storage of an unknown type, {storage_type.name[:80]!r}")
        storage = Storage(key, itemsize, count * itemsize, storage_type.name)
        if self.claims.storages.setdefault(key, storage) != storage:
            raise TorchPickleError(f"it claims two lengths or types for the storage {key[:80]!r}")
        self.push(self.part(storage, view[0]) if view and view[0] is not None else storage)

    def part(self, storage: Storage, view: tuple[Any, ...]) -> Storage:
        """Return a part of a storage, as used in old files."""
        key, offset, count = view
        if not isinstance(key, str) or not _is_size(offset) or not _is_size(count):
            raise TorchPickleError("it requests something that isn't a storage")
        if (offset + count) * storage.itemsize > storage.nbytes:
            raise TorchPickleError(f"a part of the storage {storage.key[:80]!r} lies beyond its end")
        return Storage(key, storage.itemsize, count * storage.itemsize, storage.kind)

    def check_view(self, arguments: tuple[Any, ...], itemsize: int | None) -> None:
        """Check that a view stays within its storage."""
        storage, offset, sizes, strides = arguments[:4]
        fine = isinstance(storage, Storage) and _is_size(offset) and _are_sizes(sizes) and _are_sizes(strides)
        if not fine or len(sizes) != len(strides):
            raise TorchPickleError("a tensor has no storage, or sizes and strides that no tensor can have")
        if 0 in sizes:
            return
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if (last + 1) * (itemsize or storage.itemsize) > storage.nbytes:
            raise TorchPickleError(f"a tensor exceeds its storage {storage.key[:80]!r} of {storage.nbytes:,} bytes")
        shown = math.prod(sizes) * (itemsize or storage.itemsize)
        self.expanded += shown if shown > storage.nbytes else 0
        if self.expanded > _MAX_EXPANDED:
            raise TorchPickleError(f"its tensors repeat elements (expand) to more than {_MAX_EXPANDED:,} bytes")


def _itemsize_of(dtype: Any) -> int:
    """Return the item size of a dtype by its name."""
    import torch

    found = getattr(torch, dtype.name, None) if isinstance(dtype, Global) and dtype.module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise TorchPickleError("it has a tensor of an unknown dtype")
    return found.itemsize


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_sizes(values: Any) -> bool:
    return type(values) is PickledTuple and len(values) <= _MAX_DIMENSIONS and all(map(_is_size, values))


def _set_item(machine: PickleMachine) -> None:
    machine.last(2)


def _long(machine: PickleMachine) -> int:
    return int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)


def _text(machine: PickleMachine) -> str:
    return machine.take(machine.number("<I")).decode("utf-8", "surrogatepass")


def _remember(code: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.memo.__setitem__(machine.number(code), machine.stack[-1])


def _recall(code: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.push(machine.memo[machine.number(code)])


def _pushing(value_of: Callable[[PickleMachine], Any]) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.push(value_of(machine))


STOP = ord(".")

#: Pickle protocols with instructions that torch's ``weights_only`` unpickler doesn't support.
_LATER = (b"\x04", b"\x05")

INSTRUCTIONS: dict[int, Callable[[PickleMachine], Any]] = {
    code[0]: follow
    for code, follow in {
        b"\x80": lambda machine: machine.take(1),
        b"(": PickleMachine.mark,
        b"c": PickleMachine.import_name,
        b"N": _pushing(lambda _: None),
        b"\x88": _pushing(lambda _: True),
        b"\x89": _pushing(lambda _: False),
        b")": _pushing(lambda _: _EMPTY),
        b"]": _pushing(lambda _: []),
        b"}": _pushing(lambda _: _OPAQUE),
        b"\x8f": _pushing(lambda _: _OPAQUE),
        b"J": _pushing(lambda machine: machine.number("<i")),
        b"K": _pushing(lambda machine: machine.number("<B")),
        b"M": _pushing(lambda machine: machine.number("<H")),
        b"G": _pushing(lambda machine: machine.number(">d")),
        b"\x8a": _pushing(_long),
        b"X": _pushing(_text),
        b"U": _pushing(lambda machine: machine.take(machine.number("<B"))),
        b"t": lambda machine: machine.tuple_of(machine.since_mark()),
        b"\x85": lambda machine: machine.tuple_of(machine.last(1)),
        b"\x86": lambda machine: machine.tuple_of(machine.last(2)),
        b"\x87": lambda machine: machine.tuple_of(machine.last(3)),
        b"a": lambda machine: machine.extend(machine.last(1)),
        b"e": lambda machine: machine.extend(machine.since_mark()),
        b"s": _set_item,
        b"u": PickleMachine.since_mark,
        b"q": _remember("<B"),
        b"r": _remember("<I"),
        b"h": _recall("<B"),
        b"j": _recall("<I"),
        b"R": PickleMachine.call,
        b"\x81": PickleMachine.call,
        b"b": PickleMachine.build,
        b"Q": PickleMachine.load_storage,
    }.items()
}
