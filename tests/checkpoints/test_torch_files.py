"""Torch files: nested as training scripts nest them, never unpickled, never a traceback."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightspace.checkpoints import load_checkpoint, load_metadata, save_checkpoint
from weightspace.errors import CheckpointError, WeightspaceWarning

W = {"w": torch.arange(3.0)}

NESTED = {
    "plain": W,
    "with an epoch": {**W, "epoch": 3},
    "state_dict": {"state_dict": W, "epoch": 3, "best": torch.tensor(0.5)},
    "model": {"model": W, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "model_state_dict": {"model_state_dict": W},
    "twice": {"state_dict": {"model": W}},
}

AMBIGUOUS = {
    "two usual names": ({"model": W, "state_dict": W}, "'model', 'state_dict'"),
    "an unusual name": ({"net": W, "epoch": 3}, "under 'net'"),
    "beside tensors": ({"best": torch.tensor(0.5), "net": W}, "under 'net'"),
}


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("case", NESTED)
def test_the_state_dict_is_found_where_scripts_put_it(case: str, tmp_path: Path) -> None:
    state = load_checkpoint(saved(NESTED[case], tmp_path / "a.pt"))
    assert list(state) == ["w"]
    assert state["w"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_an_ambiguous_file_asks_for_the_key(case: str, tmp_path: Path) -> None:
    content, message = AMBIGUOUS[case]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved(content, tmp_path / "a.pt"))


@pytest.mark.parametrize("value", [[torch.ones(2)], (torch.ones(2), None), [(1, [torch.ones(2)])]])
def test_tensors_in_lists_are_refused_not_lost(value: Any, tmp_path: Path) -> None:
    path = saved({**W, "codes": value, "shape": [1, 2]}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"'codes' holds tensors in a .*they would be lost"):
        load_checkpoint(path)
    nested = saved({"model": W, "codes": value}, tmp_path / "b.pt")
    assert load_checkpoint(nested).keys() == W.keys()


def test_a_key_chooses_the_entry_and_the_empty_key_the_top(tmp_path: Path) -> None:
    path = saved({"best": torch.tensor(0.5), "net": W}, tmp_path / "a.pt")
    assert list(load_checkpoint(path, key="net")) == ["w"]
    assert list(load_checkpoint(path, key="")) == ["best"]
    with pytest.raises(CheckpointError, match="no entry 'ema', found 'best', 'net'"):
        load_checkpoint(path, key="ema")
    with pytest.raises(CheckpointError, match="'best' is a Tensor"):
        load_checkpoint(path, key="best")


INSIDE = {
    "an average that a callback keeps": (
        {"state_dict": {"w": torch.zeros(3)}, "callbacks": {"EMA": {"ema_state_dict": W}}},
        "callbacks.EMA.ema_state_dict",
    ),
    "a module inside a model": ({"model": {"module": W}}, "model.module"),
    "names with dots": ({"swa.model": {"best.1": W}, "swa": {"w": torch.zeros(3)}}, "swa.model.best.1"),
    "a usual name inside": ({"model": {"w": torch.zeros(3)}, "ema": {"state_dict": W, "decay": 0.999}}, "ema"),
}


@pytest.mark.parametrize("case", INSIDE)
def test_a_key_leads_to_nested_entries(case: str, tmp_path: Path) -> None:
    content, key = INSIDE[case]
    assert load_checkpoint(saved(content, tmp_path / "a.pt"), key=key)["w"].tolist() == [0.0, 1.0, 2.0]


def test_the_key_that_an_error_or_a_warning_names_can_be_used(tmp_path: Path) -> None:
    path = saved({"model": {"module": W, "teacher": {"net": W}}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"under 'model\.module', 'model\.teacher\.net': choose the model"):
        load_checkpoint(path)
    assert list(load_checkpoint(path, key="model.teacher.net")) == ["w"]
    with pytest.raises(CheckpointError, match=r"no entry 'model\.student'"):
        load_checkpoint(path, key="model.student")
    path = saved({"state_dict": W, "callbacks": {"Average": {"weights": W}, "epoch": 3}}, tmp_path / "b.pt")
    with pytest.warns(WeightspaceWarning, match=r"--key callbacks\.Average\.weights"):
        load_checkpoint(path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_of_a_later_protocol_says_so(protocol: int, new_format: bool, tmp_path: Path) -> None:
    path = saved(W, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=rf"pickle of protocol {protocol}.*without pickle_protocol"):
        load_checkpoint(path)


def test_other_archives_are_recognised_by_their_contents(tmp_path: Path) -> None:
    np.savez(tmp_path / "arrays.npz", w=np.ones(2))
    with pytest.raises(CheckpointError, match=r"'w\.npy' in it"):
        load_checkpoint(tmp_path / "arrays.npz")
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"ViT-B-32/{name}", b"")
    with pytest.raises(CheckpointError, match=r"a TorchScript program; .*torch\.jit\.load"):
        load_checkpoint(tmp_path / "ViT-B-32.pt")


NOT_THE_FILE = {
    "a web page": b"\n<!doctype html><html>",
    "a server response": b'{"error":"Access to model x is restricted."}',
    "a bzip2 archive": b"BZh91AY&SY",
}


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.ckpt"])
@pytest.mark.parametrize("what", NOT_THE_FILE)
def test_files_downloaded_instead_of_weights_are_named(what: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NOT_THE_FILE[what] + b" " * 40)
    with pytest.raises(CheckpointError, match=what):
        load_checkpoint(tmp_path / name)


def test_a_file_of_the_old_format_is_read(tmp_path: Path) -> None:
    path = saved(W, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(path)["w"].tolist() == [0.0, 1.0, 2.0]
    assert load_metadata(path) == {}


def test_tied_parameters_of_a_torch_file_stay_tied(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    state = load_checkpoint(saved({"embed": weight, "head": weight}, tmp_path / "a.pt"))
    state["embed"][0] = 1.0
    assert state["head"][0] == 1.0


def test_the_file_of_a_stranger_has_no_metadata(tmp_path: Path) -> None:
    assert load_metadata(saved(W, tmp_path / "a.pt")) == {}


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    content = {"w": torch.ones(1), "x": Malicious(witness)}
    path = saved(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError, match=r"evil\.pt .*needs code to be run \(posix\.system\)") as caught:
        load_checkpoint(path)
    assert not witness.exists()
    assert "\n" not in str(caught.value)


HOLDS_NO_MODEL = {
    "a tensor": torch.ones(2),
    "a list": [torch.ones(2)],
    "numbers": {"epoch": 3},
    "nothing": {},
    "numbers as names": {0: torch.ones(2)},
    "a module": torch.nn.Linear(1, 1),
    "a sparse tensor": {"w": torch.eye(2).to_sparse()},
}


@pytest.mark.parametrize("case", HOLDS_NO_MODEL)
def test_a_file_without_named_tensors_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load_checkpoint(saved(HOLDS_NO_MODEL[case], tmp_path / "a.pt"))


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"w": torch.ones(1)}
    endless["model"] = endless
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load_checkpoint(saved(endless, tmp_path / "a.pt"))


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18), pickle.dumps({"w": 1}), bytes(64)])
def test_a_file_that_is_not_of_torch_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        load_checkpoint(tmp_path / "a.pt")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.pt"
    save_checkpoint({"w": torch.ones(2, 3), "n": torch.tensor(3)}, path, metadata={"a": "1"})
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_corruption_gives_anything_but_tensors_or_a_checkpoint_error(data: st.DataObject, good: Path) -> None:
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = good.with_name("corrupt.pt")
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (load_checkpoint, load_metadata):
        try:
            message = f"corrupt.pt: {read(path)}"
        except CheckpointError as error:
            message = str(error)
        assert "corrupt.pt" in message
