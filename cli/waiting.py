"""A sign of life on a terminal while libraries are imported, which can take seconds; gone with the first output."""

from __future__ import annotations

import sys
import threading

#: Seconds until it is shown.
_DELAY = 0.4
_LINE = "starting …"

_lock = threading.Lock()
_timer: threading.Timer | None = None
_shown = False


def begin() -> None:
    """Show the sign soon, unless there is output before, or stderr is no terminal."""
    global _timer
    end()
    if sys.stderr.isatty():
        _timer = threading.Timer(_DELAY, _show)
        _timer.daemon = True
        _timer.start()


def end() -> None:
    """Take the sign away; called before anything is printed."""
    global _timer, _shown
    with _lock:
        if _timer is not None:
            _timer.cancel()
            _timer = None
        if _shown:
            _shown = False
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def _show() -> None:
    global _shown
    with _lock:
        if _timer is not None:
            _shown = True
            sys.stderr.write(_LINE)
            sys.stderr.flush()
