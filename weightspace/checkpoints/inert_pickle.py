"""Evaluation of a pickle as plain data: nothing is imported, and no object is created or function called.

Dicts, lists, tuples, sets, numbers and text become themselves, tensors views of storages, and any other object a
``Record`` of its class with the arguments and the state in the pickle. Classes are allowed by name; others are refused.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from weightspace.checkpoints.json_file import no_collection
from weightspace.checkpoints.torch_pickle import (
    INSTRUCTIONS,
    REFUSED,
    STOP,
    VIEWS,
    Claims,
    Global,
    PickledTuple,
    PickleMachine,
    Storage,
    TorchPickleError,
)

#: torch's name of a dtype, and of its storage -> name of the dtype in safetensors.
TORCH_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64"},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL"},
    **{"int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8"},
    **{"uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8"},
}
_STORAGES = {
    **{"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"},
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8"},
    **{"BoolStorage": "BOOL", "ComplexFloatStorage": "C64"},
}
_ITEMSIZES = {**{"F64": 8, "C64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4}, **{"F16": 2, "BF16": 2}}

#: Containers that are read as dicts.
_DICTS = (("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "dict"), ("__builtin__", "dict"))

_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter")


@dataclass(eq=False, slots=True)
class Record:
    """An object in a pickle that isn't plain data.

    Attributes:
        kind: its class, or the function that would create it.
        arguments: arguments of the call.
        state: the state that would be set, or None.
    """

    kind: Global
    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, eq=False, slots=True)
class TensorView:
    """A tensor in a pickle: a view of a storage, with strides and the offset of its first element in elements.

    ``dtype`` is the dtype's name in safetensors, or None if the format has none.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are stored in row-major order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return 0 in self.shape
            step *= size
        return True


#: Data types and constructors of the standard library that occur in checkpoints of training scripts.
_DATA = {
    "builtins": {
        "set",
        "frozenset",
        "dict",
        "list",
        "tuple",
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "bytes",
        "slice",
    }
    | {"range", "object", "NoneType"},
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "copyreg": {"_reconstructor", "__newobj__", "__newobj_ex__"},
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "functools": {"partial"},
}

#: Modules of the standard library that hold only data types.
_DATA_MODULES = ("pathlib", "datetime", "decimal", "enum", "fractions", "uuid", "typing", "dataclasses", "numbers")

#: Top-level modules of the standard library, also those that stand behind others.
_STANDARD = sys.stdlib_module_names | {"nt", "commands", "popen2"}


def is_data(name: Global) -> bool:
    """Return whether a global name may stand beside tensors: anything but functions of Python's standard library.

    Whatever is allowed isn't run either; a call of ``os.system`` in a checkpoint is refused because it is an attack.
    """
    module = name.module.partition(".")[0]
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    if module in _DATA:
        return name.name in _DATA[module]
    return module in _DATA_MODULES or module not in _STANDARD


def read_pickle(content: bytes, *, allows: Callable[[Global], bool]) -> Claims:
    """Evaluate a pickle as plain data.

    Args:
        content: the pickle; see ``check_memory``.
        allows: whether objects of a class, or a function's results, may occur.

    Raises:
        TorchPickleError: the pickle is damaged or has an object that isn't allowed, or a view exceeds its storage.
    """
    machine = _InertMachine(content, allows)
    try:
        with no_collection():
            machine.run()
    except TorchPickleError:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise TorchPickleError(f"its pickle is damaged ({type(error).__name__} at byte {machine.at:,})") from error
    return machine.claims


class _InertMachine(PickleMachine):
    """Interpreter of the instructions of protocols 2 to 5 that plain data and objects need."""

    def __init__(self, content: bytes, allows: Callable[[Global], bool]) -> None:
        super().__init__(content, 0)
        self.allows = allows

    def run(self) -> None:
        """Evaluate the pickle to its end; some have millions of instructions."""
        content, instructions = self.content, _INSTRUCTIONS
        while True:
            code = content[self.at]
            self.at += 1
            if code == STOP:
                self.claims.value, self.claims.end = self.stack.pop(), self.at
                return
            instructions[code](self)

    def import_name(self) -> None:
        """Push a global name after checking that it is allowed."""
        super().import_name()
        self.check_allowed(self.stack[-1])

    def stack_name(self) -> None:
        """Push a global name whose parts are on the stack."""
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TorchPickleError("its pickle is damaged")
        self.push(Global(module, name))
        self.check_allowed(self.stack[-1])

    def check_allowed(self, name: Global) -> None:
        """Check that a global name may occur."""
        if name.name in REFUSED or not self.allows(name):
            raise TorchPickleError(
                f"it needs code to be run ({name.module[:80]}.{name.name[:80]}), which isn't part of a checkpoint",
                "Is it from a source that you trust?",
            )

    def result(self, function: Any, arguments: Any) -> Any:
        """Return what a call stands for: a container, a view, or a record of the call."""
        if not isinstance(function, Global) or type(arguments) is not PickledTuple:
            raise TorchPickleError("it calls something that isn't a function")
        module, name = function
        if module == "torch._tensor" and name == "_rebuild_from_type_v2":
            return self.result(arguments[0], arguments[2])
        if module == "torch._utils" and name in VIEWS:
            return self.view(name, arguments)
        if name in _PARAMETERS and arguments:
            return arguments[0]
        if function in _DICTS:
            return {}
        return arguments[0] if function == ("torch", "Size") and arguments else Record(function, arguments)

    def view(self, name: str, arguments: PickledTuple) -> TensorView:
        """Return a view of a storage after checking that it stays within it."""
        storage, offset, shape, strides = arguments[:4]
        dtype = _STORAGES.get(storage.kind)
        if name == "_rebuild_tensor_v3":
            dtype = TORCH_DTYPES.get(arguments[6].name)
            if dtype is None:
                raise TorchPickleError(f"it has a tensor of the dtype {arguments[6].name[:80]!r}, which is not read")
        itemsize = storage.itemsize if dtype is None else _ITEMSIZES.get(dtype, 1)
        self.check_view(arguments, itemsize)
        return TensorView(storage, offset, tuple(shape), tuple(strides), dtype)

    def build(self) -> None:
        """Keep the state of an object; that of a container is dropped."""
        state = self.last(1)[0]
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], TensorView):
            raise TorchPickleError("it modifies a tensor after its creation, as torch before 0.4 did")

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict below them; those of other objects are dropped."""
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def add_items(self, items: list[Any]) -> None:
        """Add elements to the set below them."""
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(items)


def _push_byte(machine: PickleMachine) -> None:
    machine.stack.append(machine.content[machine.at])
    machine.at += 1


def _recall_byte(machine: PickleMachine) -> None:
    machine.stack.append(machine.memo[machine.content[machine.at]])
    machine.at += 1


def _remember_next(machine: PickleMachine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


def _text(code: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.push(machine.take(machine.number(code)).decode("utf-8", "surrogatepass"))


def _bytes(code: str) -> Callable[[PickleMachine], None]:
    return lambda machine: machine.push(machine.take(machine.number(code)))


_INSTRUCTIONS: dict[int, Callable[[_InertMachine], Any]] = {
    **INSTRUCTIONS,
    **{
        code[0]: follow
        for code, follow in {
            b"c": _InertMachine.import_name,
            b"b": _InertMachine.build,
            b"}": lambda machine: machine.push({}),
            b"s": lambda machine: machine.set_items(machine.last(2)),
            b"u": lambda machine: machine.set_items(machine.since_mark()),
            b"\x8f": lambda machine: machine.push(set()),
            b"\x90": lambda machine: machine.add_items(machine.since_mark()),
            b"\x91": lambda machine: machine.push(frozenset(machine.since_mark())),
            b"\x8c": _text("<B"),
            b"\x8d": _text("<Q"),
            b"C": _bytes("<B"),
            b"B": _bytes("<I"),
            b"\x8e": _bytes("<Q"),
            b"\x96": _bytes("<Q"),
            b"\x92": lambda machine: machine.push(machine.result(*machine.last(3)[:2])),
            b"\x93": _InertMachine.stack_name,
            b"\x94": _remember_next,
            b"K": _push_byte,
            b"h": _recall_byte,
            b"\x95": lambda machine: machine.take(8),
        }.items()
    },
}
