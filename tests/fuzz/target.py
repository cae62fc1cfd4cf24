"""A kind of file in a folder of its own, one file of which is damaged and read again and again."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from cases import KINDS_OF_FILES
from mutations import BLIND
from readers import FuzzError, Reader

from weightspace.errors import WeightspaceError, WeightspaceWarning

#: Seconds of the processor that a reader may take for a file, and of the clock after which it counts as one that hangs.
LIMIT, HANGS = 10.0, 120

#: Bytes of memory that a reader may take.
MEMORY = 1_000_000_000


@dataclass(frozen=True)
class Outcome:
    """What came of a damaged file: the seconds and bytes of the slowest and largest reader, and the first message."""

    result: Literal["read", "refused"]
    seconds: float
    memory: int
    message: str


class Target:
    """A kind of file; the same number is the same damaged file in every run, on every machine."""

    def __init__(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.name = name
        self.kind = KINDS_OF_FILES[name]
        self.folder = folder
        self.path = self.kind.make(folder)
        if name.endswith("as JSON") or name == "slices":
            self.path.write_text(json.dumps(yaml.safe_load(self.path.read_text())))
        self.content = self.path.read_bytes()

    def damaged(self, number: int, seed: int) -> bytes:
        """Return the file of a number."""
        draw = random.Random(f"{seed} {self.name} {number}")
        mutation = draw.choice(list(self.kind.mutations))
        try:
            return mutation(self.content, draw)
        except UnicodeError:
            return BLIND[0](self.content, draw)

    def run(self, content: bytes) -> Outcome:
        """Let every reader read a damaged file.

        Raises:
            FuzzError: one of them raised something else than an error of this library, one that is no short line; it
                took too long or too much memory, printed something, or wrote, changed or removed a file.
        """
        self.path.write_bytes(content)
        before = _listed(self.folder.parent)
        outcome = Outcome("read", 0.0, 0, "")
        for reader in self.kind.readers:
            _reset_peak()
            start, held = time.process_time(), _peak()
            message = self._message(reader)
            seconds, memory = time.process_time() - start, _peak() - held
            if seconds > LIMIT or memory > MEMORY:
                raise FuzzError(f"took {seconds:.1f} s and {memory:,} bytes of memory")
            outcome = Outcome(
                "refused" if message or outcome.result == "refused" else "read",
                max(seconds, outcome.seconds),
                max(memory, outcome.memory),
                outcome.message or message,
            )
        changed = {name for name, _ in _listed(self.folder.parent).items() ^ before.items()}
        allowed = f"{self.folder.name}/{self.kind.writes}" if self.kind.writes else None
        if any(allowed is None or not name.startswith(allowed) for name in changed):
            raise FuzzError(f"written, changed or removed: {sorted(changed)[:3]}")
        return outcome

    def _message(self, reader: Reader) -> str:
        """Return what a reader says against the file; nothing where it reads it."""
        printed = io.StringIO()
        try:
            with (
                _alarm(),
                redirect_stdout(printed),
                redirect_stderr(printed),
                warnings.catch_warnings(record=True) as seen,
            ):
                warnings.simplefilter("always")
                reader(self.path)
        except WeightspaceError as error:
            message = str(error)
            if not 10 <= len(message) < 500 or not message.isprintable():
                raise FuzzError(f"the message is {message[:600]!r}") from error
            return message
        except (FuzzError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise FuzzError(f"{type(error).__name__}: {str(error)[:300]}") from error
        seen = [one for one in seen if one.category is not WeightspaceWarning or not str(one.message).isprintable()]
        if printed.getvalue() or seen:
            raise FuzzError(
                f"printed {printed.getvalue()[:300]!r}, warned of {[str(one.message)[:200] for one in seen]}"
            )
        return ""


@contextmanager
def _alarm() -> Iterator[None]:
    """Interrupt what hangs."""

    def hangs(*_: Any) -> None:
        raise FuzzError(f"hangs: more than {HANGS} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _listed(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the kind, the size and the content of all that is below a folder."""
    listed = {}
    for root, folders, files in os.walk(folder):
        for path in (Path(root) / name for name in (*folders, *files)):
            status = path.lstat()
            regular = stat.S_ISREG(status.st_mode)
            content = path.read_bytes() if regular else os.readlink(path).encode() if path.is_symlink() else b""
            listed[str(path.relative_to(folder))] = (status.st_mode, len(content), content)
    return listed


def _reset_peak() -> None:
    """Let the system count the most memory from here on."""
    with suppress(OSError):  # not everywhere allowed; the peak is that of the process then
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Return the most bytes of memory that this process had since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
