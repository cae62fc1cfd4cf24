"""A torch file gives the tensors that were saved, or is refused: no length in it is believed."""

import io
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_archives import STATE, rewritten, saved

from weightspace.checkpoints import load_checkpoint, load_metadata, save_checkpoint
from weightspace.checkpoints.torch_archive import check_torch_file
from weightspace.checkpoints.zip_records import read_directory
from weightspace.errors import CheckpointError
from weightspace.merging import merge_files


def same(state: Mapping[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], STATE[name]) for name in STATE)


def same_or_refused(path: Path) -> bool:
    try:
        return same(load_checkpoint(path))
    except CheckpointError as error:
        return str(path) in str(error)


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_was_packed_again_gives_the_tensors_that_were_saved(compress: int, tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path / "a.pt"), compress=compress)
    assert check_torch_file(path) is False  # compressed, or at odd addresses
    assert same(load_checkpoint(path))


def test_an_archive_of_torch_is_mapped(tmp_path: Path) -> None:
    assert check_torch_file(saved(tmp_path / "a.pt")) is True
    save_checkpoint(STATE, tmp_path / "b.pt", metadata={"a": "b"})
    assert check_torch_file(tmp_path / "b.pt") is True


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("order", ["little", "big"])
def test_numbers_of_a_machine_with_the_other_order_of_bytes_are_those_that_were_saved(
    order: str, aligned: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.pt")
    sizes = {"0": 4, "1": 2, "2": 8}
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for name in archive.namelist():
            content, key = archive.read(name), name.rpartition("/")[2]
            if key == "byteorder":
                content = order.encode()
            elif "/data/" in name and order != sys.byteorder:
                step = sizes[key]
                content = b"".join(content[at : at + step][::-1] for at in range(0, len(content), step))
            record = zipfile.ZipInfo(name)
            if aligned:
                padding = -(other.fp.tell() + 34 + len(name)) % 64  # type: ignore[union-attr]
                record.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
            other.writestr(record, content)
    assert same(load_checkpoint(tmp_path / "b.pt"))
    merge_files([path, tmp_path / "b.pt"], tmp_path / "out.pt")
    assert same(load_checkpoint(tmp_path / "out.pt"))


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(load_checkpoint(path))


@pytest.mark.parametrize("old", [False, True])
def test_every_truncation_is_refused(old: bool, tmp_path: Path) -> None:
    content = saved(tmp_path / "a.pt", old=old).read_bytes()
    cut = tmp_path / "cut.pt"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pt"):
            load_checkpoint(cut)


def test_a_changed_byte_outside_the_tensors_gives_the_same_tensors_or_an_error(tmp_path: Path) -> None:
    content = saved(tmp_path / "a.pt").read_bytes()
    with open(tmp_path / "a.pt", "rb") as file:
        records = [record for name, record in read_directory(file).items() if name.startswith("a/data/")]
    inside = {record.start + offset for record in records for offset in range(record.size)}
    changed = tmp_path / "changed.pt"
    for at in sorted(set(range(len(content))) - inside)[::2]:
        changed.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        assert same_or_refused(changed), f"byte {at} was changed, and other tensors were read"


def test_a_changed_byte_of_a_compressed_archive_is_detected(tmp_path: Path) -> None:
    content = rewritten(saved(tmp_path / "a.pt"), compress=zipfile.ZIP_DEFLATED).read_bytes()
    changed = tmp_path / "changed.pt"
    for at in range(0, len(content), 3):
        changed.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        assert same_or_refused(changed), f"byte {at} was changed, and other tensors were read"


RECORDS = {
    "shorter": {"data/0": lambda content: content[:-4]},
    "empty": {"data/0": lambda _: b""},
    "longer": {"data/0": lambda content: content + bytes(4)},
}


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", RECORDS)
def test_a_storage_that_is_not_as_long_as_claimed_is_refused(case: str, compress: int, tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path / "a.pt"), RECORDS[case], compress=compress)
    with pytest.raises(CheckpointError, match=r"the storage '0' has .* bytes, but the pickle claims 24"):
        load_checkpoint(path)


#: What a pickle could say of ``w``, two rows of three in a storage of six.
VIEWS = {
    "more rows": (b"K\x00K\x02K\x03\x86", b"K\x00K\x03K\x03\x86"),
    "an offset beyond the end": (b"K\x00K\x02K\x03\x86", b"K\x01K\x02K\x03\x86"),
    "a negative size": (b"K\x02K\x03\x86", b"J\xfe\xff\xff\xffK\x03\x86"),
    "a negative offset": (b"K\x00K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x02K\x03\x86"),
    "sizes that overflow": (b"K\x02K\x03\x86", b"\x8a\x09" + bytes(8) + b"\x01K\x03\x86"),
    "strides that overflow": (b"K\x03K\x01\x86", b"\x8a\x08" + bytes(7) + b"\x40K\x01\x86"),
    "a negative stride": (b"K\x03K\x01\x86", b"J\xfd\xff\xff\xffK\x01\x86"),
    "as many sizes as strides, less one": (b"K\x03K\x01\x86", b"K\x01\x85"),
    "another number of elements": (b"K\x06t", b"K\x60t"),
    "true as size": (b"K\x02K\x03\x86", b"\x88K\x03\x86"),
}


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("case", VIEWS)
def test_a_view_of_more_than_its_storage_is_refused(case: str, compress: int, tmp_path: Path) -> None:
    old, new = VIEWS[case]
    path = saved(tmp_path / "a.pt", {"w": STATE["w"]})

    def lie(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    with pytest.raises(CheckpointError, match=r"a\.pt (cannot be read|is a damaged archive)"):
        load_checkpoint(rewritten(path, {"data.pkl": lie}, compress=compress))


def test_repeated_elements_are_read_where_they_are_few(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"mask": torch.ones(1, 4).expand(3, 4), "positions": torch.arange(4).expand(1, -1)})
    assert load_checkpoint(path)["mask"].tolist() == [[1.0] * 4] * 3


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("content", ["one of terabytes", "many of megabytes"])
def test_repeated_elements_that_claim_the_memory_are_refused(content: str, old: bool, tmp_path: Path) -> None:
    state = {
        "one of terabytes": {"w": torch.ones(1).expand(10**12)},
        "many of megabytes": {str(n): torch.ones(1).expand(2**18) for n in range(200)},
    }[content]
    with pytest.raises(CheckpointError, match="repeat elements"):
        load_checkpoint(saved(tmp_path / "a.pt", state, old=old))


def test_a_tar_is_refused_and_not_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.pt", "w") as file:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(CheckpointError, match="it is not a torch file"):
        load_checkpoint(tmp_path / "a.pt")


def patched(path: Path, at: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(value)] = value
    path.write_bytes(content)


def entry_of(path: Path, name: str) -> int:
    """Return where the record stands in the archive's list."""
    return path.read_bytes().rindex(name.encode()) - 46


DIRECTORIES: dict[str, tuple[int, bytes]] = {
    "encrypted": (8, b"\1\0"),
    "an unknown compression": (10, b"\x0e\0"),
    "deflated in the list only": (10, b"\x08\0"),
    "two lengths": (20, struct.pack("<I", 7)),
    "a length beyond the end": (20, struct.pack("<II", 2**30, 2**30)),
    "64 bits that are missing": (24, b"\xff" * 4),
    "the place of another record": (42, struct.pack("<I", 0)),
    "a place beyond the end": (42, struct.pack("<I", 2**31)),
    "another disk": (34, b"\1\0"),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_an_archive_with_a_false_directory_is_refused(case: str, tmp_path: Path) -> None:
    offset, value = DIRECTORIES[case]
    path = rewritten(saved(tmp_path / "a.pt"))
    patched(path, entry_of(path, "a/data/0") + offset, value)
    with pytest.raises(CheckpointError, match="damaged archive"):
        load_checkpoint(path)


def test_a_record_inside_another_one_is_refused(tmp_path: Path) -> None:
    inner = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, 0, 0, 0, 0, 8, 8, 8, 0) + b"a/data/1" + bytes(8)
    content = torch.frombuffer(bytearray(inner + bytes(2)), dtype=torch.uint8)
    path = saved(tmp_path / "a.pt", {"w": content, "b": STATE["w"]})
    rewritten(path, {"data/1": lambda _: bytes(8)})
    patched(path, entry_of(path, "a/data/1") + 42, struct.pack("<I", path.read_bytes().index(inner)))
    patched(path, entry_of(path, "a/data/1") + 16, bytes(4))
    with pytest.raises(CheckpointError, match=r"in(to)? another record"):
        load_checkpoint(path)


def test_two_records_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("data/0", "DATA/0"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of it too
            path = rewritten(saved(tmp_path / "a.pt"), new={name: bytes(24)})
        with pytest.raises(CheckpointError, match="two records named"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", ["data/0", "data.pkl", "weightspace.json", "unused"])
def test_a_bomb_is_refused(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "archive.pt")
    zeros = b" " * 100_000_000
    new = {} if name.startswith("data") else {name: zeros}
    rewritten(path, {name: lambda _: zeros}, compress=zipfile.ZIP_DEFLATED, new=new)
    assert path.stat().st_size < 200_000
    for read in (load_checkpoint, load_metadata):
        with pytest.raises(CheckpointError, match=r"its .* bytes would become"):
            read(path)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("good") / "good.pt")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_the_pickle_gives_anything_but_tensors_or_a_checkpoint_error(
    data: st.DataObject, good: Path
) -> None:
    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        return bytes(changed)

    path = good.with_name("changed.pt")
    path.write_bytes(good.read_bytes())
    try:
        state, message = load_checkpoint(rewritten(path, {"data.pkl": change})), ""
    except CheckpointError as error:
        state, message = {}, str(error)
    assert state or "changed.pt" in message
    assert sum(tensor.nbytes for tensor in state.values()) < 10_000
    assert all(tensor.tolist() is not None for tensor in state.values())
