"""Two names on the disk exchanged in one step, so that at no moment either of them is missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

#: Linux's ``RENAME_EXCHANGE``, and the descriptor that stands for the working directory.
_EXCHANGE, _HERE = 2, -100

#: What systems and file systems say that cannot do it.
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchange(a: Path, b: Path) -> bool:
    """Give two existing files or folders each other's name; return whether the system can.

    Raises:
        OSError: it can, but the disk refuses.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):  # an old libc, or another system
        return False
    if rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(a))
