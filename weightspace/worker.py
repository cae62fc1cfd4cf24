"""The other side of ``executors``: what runs in a process that does one piece of work after the other."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.user_code import find_modules

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Result = TypeVar("Result")


def serve(connection: Connection, threads: int | None, files: dict[str, str], device: str | None) -> None:
    """Do pieces of work until there are no more, or the process that sends them is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that sends the work answers it
    _die_with_parent()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    find_modules(files)
    function: Any = None
    while True:
        try:
            if function is None:
                function = _received(connection)
            answer = (True, do_piece(threads, function, *_received(connection)), "")
        except Exception as error:
            answer = (False, error, traceback.format_exc())
        _answer(connection, answer)


def _received(connection: Connection) -> Any:
    try:
        message = message_from(connection)
    except EOFError:
        sys.stderr.flush()
        os._exit(0)  # all is written; taking libraries down in order takes longer than a small piece of work
    return unpacked(message)


class Receiver(Protocol):
    """An end of a pipe."""

    def recv_bytes(self) -> bytes:
        """Return the next message."""
        ...


def message_from(connection: Receiver) -> bytes:
    """Return a message as it came.

    Raises:
        EOFError: the other process is gone, maybe in the middle of it.
    """
    try:
        return connection.recv_bytes()
    except OSError as error:
        raise EOFError from error


def unpacked(message: bytes) -> Any:
    """Return what a message holds; whatever that raises is raised by what it holds."""
    from multiprocessing.reduction import ForkingPickler

    return ForkingPickler.loads(message)  # pyright: ignore[reportAttributeAccessIssue]


def _answer(connection: Connection, answer: tuple[bool, Any, str]) -> None:
    """Send the result of a piece, or the error; nobody waits for either where the other process is gone."""
    try:
        connection.send(answer)
    except ConnectionError:
        os._exit(1)
    except Exception as error:  # a result, or an error, that does not want to be pickled
        connection.send((False, cannot_travel(error), traceback.format_exc()))


def do_piece(threads: int | None, function: Callable[..., Result], *piece: Any) -> Result:
    """Do a piece of work with as many threads as the process that it is for; its modules are there by now."""
    if threads is not None and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    return function(*piece)


def _die_with_parent() -> None:
    """End this process as soon as the one that started it is gone, killed too: nobody waits for its work any more."""
    import threading
    from multiprocessing import parent_process
    from multiprocessing.connection import wait

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def cannot_travel(error: Exception) -> WeightspaceError:
    """Return the error for something that does not want to be pickled."""
    return WeightspaceError(
        f"Could not pickle the task for a worker: {first_line(error)}. Define what a task holds at the top of a file "
        "(no lambda, no open file), or use the executor 'serial'."
    )


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
