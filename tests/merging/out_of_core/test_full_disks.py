"""A disk that refuses in the middle of a merge: one line, nothing under the final name, and the merge goes on later."""

import multiprocessing
import resource
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files


def small(folder: Path) -> list[Path]:
    paths = [folder / "a.safetensors", folder / "b.safetensors"]
    for seed, path in enumerate(paths):
        generator = torch.Generator().manual_seed(seed)
        ws.save_checkpoint({f"{n}.weight": torch.randn(200, 300, generator=generator) for n in range(6)}, path)
    return paths


def merge_with_a_limit(folder: Path, limit: int, queue: "multiprocessing.Queue[str]") -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        merge_files(
            [folder / "a.safetensors", folder / "b.safetensors"],
            folder / "out",
            output=OutputOptions(shard_size=500_000),
        )
    except CheckpointError as error:
        queue.put(str(error))
    else:
        queue.put("no error")


def test_a_file_that_may_not_grow_is_one_line_and_leaves_the_old_output(tmp_path: Path) -> None:
    merge_files(small(tmp_path)[:1], tmp_path / "out")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    fork = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[str] = fork.Queue()
    process = fork.Process(target=merge_with_a_limit, args=(tmp_path, 400_000, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert "cannot be written" in message
    assert "\n" not in message
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_tensors_written_before_the_disk_was_full_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, calls, real = small(tmp_path), [0], __import__("os").pwrite

    def full(*arguments: object) -> int:
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        with pytest.raises(
            CheckpointError, match=r"No space left on device\. Make room and rerun the command to resume\.$"
        ):
            merge_files(paths, tmp_path / "out", execution=ExecutionOptions(threads=1))
    assert not (tmp_path / "out").exists()
    report = merge_files(paths, tmp_path / "out", execution=ExecutionOptions(threads=1))
    assert report.resumed > 0
    merge_files(paths, tmp_path / "again", execution=ExecutionOptions(threads=1))
    first, second = (ws.load_checkpoint(tmp_path / name) for name in ("out", "again"))
    assert all(first[name].equal(tensor) for name, tensor in second.items())
