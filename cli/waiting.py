"""A sign of life on a terminal during slow imports, erased before the first output."""

from __future__ import annotations

import sys
import threading

#: Delay before it is shown, in seconds.
_DELAY = 0.4
_LINE = "starting …"

_lock = threading.Lock()
_timer: threading.Timer | None = None
_shown = False


def begin() -> None:
    """Show the sign after a delay, unless output comes first or stderr isn't a terminal."""
    global _timer
    end()
    if sys.stderr.isatty():
        _timer = threading.Timer(_DELAY, _show)
        _timer.daemon = True
        _timer.start()


def end() -> None:
    """Erase the sign; called before anything is printed."""
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
