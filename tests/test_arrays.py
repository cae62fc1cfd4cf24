"""Arrays of numpy in the place of tensors are errors that say how to convert them."""

from pathlib import Path

import numpy as np
import pytest

import weightspace as ws


def test_arrays_of_numpy_are_no_tensors(tmp_path: Path) -> None:
    arrays: dict[str, object] = {"w": np.ones(2)}
    for call in (lambda: ws.merge([arrays, arrays]), lambda: ws.save_checkpoint(arrays, tmp_path / "x.pt")):  # type: ignore[list-item,arg-type]
        with pytest.raises(ws.WeightspaceError, match=r"Its entry 'w' is a ndarray\. Convert it: torch\.from_numpy"):
            call()
    assert not (tmp_path / "x.pt").exists()
