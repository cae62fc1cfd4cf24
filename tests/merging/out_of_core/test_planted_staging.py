"""Links, pipes, odd names and damaged notes where a merge writes: never followed, never waited for, one line."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import atomic_write, provenance
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, merge_files
from weightspace.merging.out_of_core import staging as staging_module
from weightspace.merging.out_of_core.staging import Staging, staging_folder

PRECIOUS = "not to be touched"


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """Fail rather than wait for a pipe."""
    done = threading.Event()
    timer = threading.Timer(120, lambda: None if done.is_set() else os._exit(86))
    timer.daemon = True
    timer.start()
    yield
    done.set()
    timer.cancel()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two checkpoints and, outside of it, a precious file and folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        ws.save_checkpoint({f"w{at}": torch.randn(9, 7, generator=generator) for at in range(6)}, f"{name}.safetensors")
    (tmp_path / "precious").write_text(PRECIOUS)
    (tmp_path / "precious_folder").mkdir()
    (tmp_path / "precious_folder" / "file").write_text(PRECIOUS)
    return here


def merge(out: str | Path, *, force: bool = False, dry_run: bool = False) -> int:
    execution = ExecutionOptions(force=force)
    return merge_files(["a.safetensors", "b.safetensors"], out, execution=execution, dry_run=dry_run).resumed


def expected() -> dict[str, torch.Tensor]:
    return ws.merge([ws.load_checkpoint(f"{name}.safetensors") for name in "ab"])


def assert_merged(out: str | Path) -> None:
    found = ws.load_checkpoint(out)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected().items())


def assert_nothing_outside_changed(folder: Path) -> None:
    assert (folder.parent / "precious").read_text() == PRECIOUS
    assert [path.name for path in (folder.parent / "precious_folder").iterdir()] == ["file"]
    assert (folder.parent / "precious_folder" / "file").read_text() == PRECIOUS
    assert sorted(path.name for path in folder.parent.iterdir()) == ["here", "precious", "precious_folder"]


def interrupted(out: str) -> Path:
    """Leave the staging folder of a merge that was stopped before the last rename, and return it."""

    def stop(staging: Staging, made: str | None) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Staging, "promote", stop)
        with pytest.raises(KeyboardInterrupt):
            merge(out)
    return staging_folder(Path(out))


PLANTED: dict[str, Callable[[Path], object]] = {
    "file": lambda path: path.symlink_to("../../precious"),
    "folder": lambda path: path.symlink_to("../../precious_folder"),
    "nowhere": lambda path: path.symlink_to("../../nowhere"),
    "itself": lambda path: path.symlink_to(path),
    "hard": lambda path: path.hardlink_to(path.parents[2] / "precious"),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("name", ["plan", "parts", "journal.0.0", "old", "aligned", "more"])
@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_entries_planted_beside_a_plan_are_removed_and_not_followed(
    what: str, name: str, out: str, folder: Path
) -> None:
    staging = interrupted(out)
    if (staging / name).is_dir():
        (staging / name).rename(folder / "kept")
    (staging / name).unlink(missing_ok=True)
    PLANTED[what](staging / name)
    assert merge(out) == 0
    assert_merged(out)
    assert_nothing_outside_changed(folder)
    assert not staging.exists()


@pytest.mark.parametrize("what", PLANTED)
def test_entries_planted_among_the_parts_are_not_written_to(what: str, folder: Path) -> None:
    staging = interrupted("out")
    part = staging / "parts" / "model.safetensors"
    part.unlink()
    PLANTED[what](staging / "planted")
    (staging / "planted").rename(part)
    assert merge("out") == 0
    assert_merged("out")
    assert_nothing_outside_changed(folder)


@pytest.mark.parametrize("what", ["file", "folder", "nowhere", "itself"])
def test_a_link_in_the_place_of_the_staging_folder_is_refused(what: str, folder: Path) -> None:
    target = {"file": "../precious", "folder": "../precious_folder", "nowhere": "../nowhere", "itself": ".out.merge"}
    Path(".out.merge").symlink_to(target[what])
    with pytest.raises(
        CheckpointError, match=r"\.out\.merge (is a link; expected a folder .* Remove it|.*Too many levels)"
    ):
        merge("out")
    assert_nothing_outside_changed(folder)
    assert not Path("out").exists()


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "pipe"])
def test_something_else_in_the_place_of_the_staging_folder_is_refused(
    make: Callable[[Path], object], folder: Path
) -> None:
    make(Path(".out.merge"))
    with pytest.raises(CheckpointError, match=r"\.out\.merge is a file; expected a folder"):
        merge("out")


@pytest.mark.parametrize("what", PLANTED)
def test_a_lock_that_is_no_plain_file_is_refused(what: str, folder: Path) -> None:
    Path(".out.merge").mkdir()
    PLANTED[what](Path(".out.merge").absolute() / "lock")
    with pytest.raises(CheckpointError, match=r"lock (is not a regular file|cannot be written)"):
        merge("out")
    assert_nothing_outside_changed(folder)


JOURNALS = {
    "zeros": bytes(100),
    "a line of zeros": bytes(40) + b"\n",
    "half a line": b'"w0"\n"w',
    "no JSON": b"w0\nw1\n",
    "no names": b'1\nnull\n["w0"]\n{"w0": 1}\n',
    "deep": b"[" * 100_000 + b"\n",
    "no UTF-8": b'"\xff\xfe"\n',
    "unknown names": b'"nothing"\n"of ours"\n',
}


@pytest.mark.parametrize("journal", JOURNALS.values(), ids=JOURNALS)
def test_intact_entries_of_a_damaged_journal_are_used(journal: bytes, folder: Path) -> None:
    staging = interrupted("out.safetensors")
    (path,) = staging.glob("journal.*")
    path.write_bytes(journal)
    for at in range(journal.count(b'"w'), 6):
        spoil(staging / "parts" / "out.safetensors", f"w{at}")
    assert merge("out.safetensors") == (1 if journal.startswith(b'"w0"\n') else 0)
    assert_merged("out.safetensors")


def spoil(path: Path, name: str) -> None:
    """Overwrite a tensor of a file, so that it has to be made again."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    start, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    path.write_bytes(content[: 8 + length + start] + b"\xff" * (end - start) + content[8 + length + end :])


@pytest.mark.parametrize("plan", [b"\xff\xfe\x00", b"", bytes(64), b"other"], ids=repr)
def test_a_damaged_plan_is_begun_again(plan: bytes, folder: Path) -> None:
    staging = interrupted("out.safetensors")
    spoil(staging / "parts" / "out.safetensors", "w3")
    (staging / "plan").write_bytes(plan)
    assert merge("out.safetensors") == 0
    assert_merged("out.safetensors")


def test_parts_of_another_size_are_made_again(folder: Path) -> None:
    staging = interrupted("out.safetensors")
    os.truncate(staging / "parts" / "out.safetensors", 100)
    assert merge("out.safetensors") == 0
    assert_merged("out.safetensors")


def test_parts_from_elsewhere_are_not_taken_for_ours(folder: Path) -> None:
    staging = interrupted("out")
    (staging / "parts").rename("kept")
    os.system("cp -r kept .out.merge/parts")
    spoil(staging / "parts" / "model.safetensors", "w1")
    assert merge("out") == 0
    assert_merged("out")


@pytest.mark.parametrize("exchanging", [True, False], ids=["in one step", "in two"])
def test_an_old_output_is_never_taken_for_the_new_one(
    exchanging: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws.save_checkpoint({name: tensor + 1 for name, tensor in ws.load_checkpoint("a.safetensors").items()}, "new")
    merge("out")
    old = Path("out/model.safetensors").read_bytes()
    if not exchanging:
        monkeypatch.setattr(staging_module, "exchange", lambda a, b: False)
    promote = Staging.promote

    def killed(staging: Staging, made: str | None) -> None:
        promote(staging, made)
        raise KeyboardInterrupt  # as a kill between the last rename and the removal of the staging folder

    sources = ["a.safetensors", "new"]
    with monkeypatch.context() as patched:
        patched.setattr(Staging, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_files(sources, "out")
    new = Path("out/model.safetensors").read_bytes()
    assert new != old
    merge_files(sources, "out")
    assert Path("out/model.safetensors").read_bytes() == new
    assert not list(Path().glob(".*"))


def test_leftovers_of_an_interrupted_run_do_not_get_into_the_output(folder: Path) -> None:
    staging = interrupted("out")
    (staging / "parts" / "stale.json").write_text("{}")
    (staging / "parts" / "stale").mkdir()
    (staging / "parts" / "stale" / "file").write_text("{}")
    assert merge("out") == 6
    assert sorted(os.listdir("out")) == ["README.md", "model.safetensors"]


def test_a_link_to_a_file_of_another_name_is_filled_in_as_what_the_link_is_called(folder: Path) -> None:
    ws.save_checkpoint({"old": torch.ones(2)}, "blob.safetensors", metadata=provenance([], "linear", {}))
    Path("blob.safetensors").rename("blob")
    for name in ("out.safetensors", "out.pt"):
        Path(name).symlink_to("blob")
        merge(name, force=name == "out.pt")
        assert Path(name).is_symlink()
        assert Path("blob").is_file()
        assert_merged(name)


def test_a_dangling_link_is_kept_and_its_target_is_written(folder: Path) -> None:
    (folder / "disk").mkdir()
    for name in ("out.safetensors", "out"):
        Path(name).symlink_to(f"disk/{name}")
        merge(name)
        assert Path(name).is_symlink()
        assert_merged(f"disk/{name}")
    assert sorted(os.listdir("disk")) == ["out", "out.safetensors"]


@pytest.mark.parametrize("name", ["out.safetensors", "out", "out.pt"])
def test_a_loop_of_links_is_one_line(name: str, folder: Path) -> None:
    Path(name).symlink_to("loop")
    Path("loop").symlink_to(name)
    for out in (name, f"{name}/below.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{out} cannot be written: (Too many levels|File exists|Not a dir)"):
            merge(out)
        with pytest.raises(CheckpointError, match=rf"{out} cannot be written"):
            ws.save_checkpoint({"w": torch.ones(1)}, out)


@pytest.mark.parametrize(("name", "link"), [("out.safetensors", "../precious_folder"), ("out", "../precious")])
def test_a_link_to_something_else_is_refused(name: str, link: str, folder: Path) -> None:
    Path(name).symlink_to(link)
    with pytest.raises(CheckpointError, match=rf"{name} is a (folder|file)"):
        merge(name)
    assert_nothing_outside_changed(folder)


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out"])
def test_a_pipe_is_neither_replaced_nor_waited_for(name: str, folder: Path) -> None:
    os.mkfifo(name)
    with pytest.raises(CheckpointError, match=rf"{name} is (not a regular file|a file)"):
        merge(name)
    assert Path(name).is_fifo()


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ""])
def test_a_name_as_long_as_a_file_may_have_is_written(ending: str, folder: Path) -> None:
    name = "n" * (255 - len(ending)) + ending
    merge(name)
    assert_merged(name)
    ws.save_checkpoint(expected(), name)
    assert sorted(os.listdir()) == sorted(["a.safetensors", "b.safetensors", name])


@pytest.mark.parametrize("name", ["n" * 250 + ".safetensors", "n" * 262, "é" * 130 + ".pt", f"{'n' * 300}/out.pt"])
def test_a_longer_name_is_one_line(name: str, folder: Path) -> None:
    for write in (merge, lambda name: merge(name, dry_run=True), lambda name: ws.save_checkpoint(expected(), name)):
        with pytest.raises(CheckpointError, match=r"cannot be written: File name too long\.$"):
            write(name)
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"]


def test_a_longer_name_of_an_input_is_one_line(folder: Path) -> None:
    for name in ("n" * 262, "n" * 251 + ".safetensors", f"{'n' * 300}/b.safetensors", f"b.safetensors+{'n' * 262}"):
        with pytest.raises(CheckpointError) as found:
            merge_files(["a.safetensors", name], "out")
        assert "\n" not in str(found.value)
        assert len(str(found.value)) < 500


@pytest.mark.parametrize("ending", [".SAFETENSORS", ".PT"])
def test_endings_in_capitals_are_endings(ending: str, folder: Path) -> None:
    merge(f"out{ending}")
    assert Path(f"out{ending}").is_file()
    assert_merged(f"out{ending}")


def test_where_two_names_cannot_be_exchanged_a_folder_is_replaced_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (staging_module, atomic_write):
        monkeypatch.setattr(module, "exchange", lambda a, b: False)
    merge("out")
    Path("out/README.md").write_text("old")
    merge("out")
    assert_merged("out")
    assert Path("out/README.md").read_text() != "old"
    ws.save_checkpoint(expected(), "out")
    assert os.listdir("out") == ["model.safetensors"]
