"""Make the committed checkpoints of Orbax: by its checkpointer, and by its manager, which makes a folder for each step.

Run it by hand with flax and orbax-checkpoint (0.12.8 made the files) installed: ``python make_orbax.py``. Files that
record the path of the folder are deleted.
"""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent / "orbax"


def main() -> None:
    """Write the checkpoints."""
    orbax: Any = import_module("orbax.checkpoint")
    shutil.rmtree(HERE, ignore_errors=True)
    state = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}}
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(HERE / "checkpointer", state)
    with orbax.CheckpointManager(HERE / "manager") as manager:
        manager.save(100, args=orbax.args.StandardSave(state))
        manager.wait_until_finished()
    for file in HERE.rglob("commit_success.txt"):
        file.unlink()


if __name__ == "__main__":
    main()
