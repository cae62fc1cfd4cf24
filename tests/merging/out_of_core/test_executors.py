"""The same bytes, whoever makes the shards: threads, processes, or workers on a Ray cluster."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, merge_files
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.worker_parts import parts
from weightspace.merging.plan.estimates import chosen_executor
from weightspace.merging.recipe.parse import read_recipe, recipe_of
from weightspace.parallel import run_jobs
from weightspace.progress import Progress

#: Above two pieces, so that pieces matter; in a gradient over layers, with random masks.
RECIPE = """
merge_method: dare_ties
base_model: FOLDER/base
models:
- {model: FOLDER/a, parameters: {weight: [0.2, 0.9], density: 0.6}}
- {model: FOLDER/b, parameters: {weight: 0.5, density: 0.4}}
parameters: {seed: 3}
dtype: bfloat16
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(600, 500, generator=generator) for layer in range(4)}
        state |= {f"layers.{layer}.bias": torch.randn(600, generator=generator) for layer in range(4)}
        ws.save_checkpoint({key: tensor.bfloat16() for key, tensor in state.items()}, folder / name)
    (folder / "recipe.yml").write_text(RECIPE.replace("FOLDER", str(folder)))
    return folder


def merged(
    folder: Path, out: Path, *, on_progress: Callable[[Progress], None] | None = None, **execution: Any
) -> dict[str, bytes]:
    merge_files(
        folder / "recipe.yml",
        out,
        output=OutputOptions(shard_size=700_000),
        execution=ExecutionOptions(**execution),
        on_progress=on_progress,
    )
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found = merged(folder, tmp_path_factory.mktemp("one") / "out", threads=1)
    assert len(found) > 4
    return found


@pytest.mark.parametrize(
    "options",
    [{"threads": 2}, {"threads": 7}, {"executor": "processes", "workers": 2}],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_threads_and_processes_make_the_same_bytes(
    options: dict[str, Any], folder: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert merged(folder, tmp_path / "out", **options) == expected


def test_processes_share_the_tensors_of_one_file(folder: Path, tmp_path: Path) -> None:
    reports = [
        merge_files(
            folder / "recipe.yml",
            tmp_path / f"{executor}.safetensors",
            execution=ExecutionOptions(executor=executor),
            output=OutputOptions(hashes=False),
        )
        for executor in ("threads", "processes")
    ]
    assert [report.tensors for report in reports] == [8, 8]
    assert (tmp_path / "threads.safetensors").read_bytes() == (tmp_path / "processes.safetensors").read_bytes()


def test_the_parts_of_a_plan_hold_every_tensor_once_and_every_shard(folder: Path, tmp_path: Path) -> None:
    plan = make_plan(
        read_recipe(folder / "recipe.yml"),
        tmp_path / "out",
        PlanOptions(OutputOptions(700_000, hashes=False, recorded={})),
    )
    for jobs in (plan.jobs, plan.jobs[3:5], ()):
        made = parts(plan, jobs, workers=2)
        assert sorted(plan.jobs[index].name for part in made for index in part.jobs) == sorted(j.name for j in jobs)
        assert {part.shard for part in made} == set(range(len(plan.shards)))
        assert all(plan.jobs[index].shard == part.shard for part in made for index in part.jobs)
        assert len({part.number for part in made}) == len(made)


def test_ray_with_two_workers_makes_the_same_bytes(folder: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    assert merged(folder, tmp_path / "out", executor="ray", workers=2) == expected


def test_an_unfinished_merge_resumes_with_another_executor(
    folder: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    def stop(event: Progress) -> None:
        if event.index > event.total / 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merged(folder, tmp_path / "out", executor="processes", workers=1, on_progress=stop)
    assert not (tmp_path / "out").exists()
    report = merge_files(
        folder / "recipe.yml",
        tmp_path / "out",
        output=OutputOptions(shard_size=700_000),
        execution=ExecutionOptions(threads=1),
    )
    assert report.resumed > 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected


def test_a_mistake_in_a_worker_is_the_error_that_it_would_be_here(folder: Path, tmp_path: Path) -> None:
    state = ws.load_checkpoint(folder / "a")
    state["layers.2.bias"][5] = float("nan")
    ws.save_checkpoint(state, tmp_path / "bad")
    recipe = (folder / "recipe.yml").read_text().replace(f"{folder}/a,", f"{tmp_path}/bad,")
    (tmp_path / "recipe.yml").write_text(recipe)
    with pytest.raises(WeightspaceError, match=r"'layers.2.bias' of bad holds NaN"):
        merge_files(
            tmp_path / "recipe.yml",
            tmp_path / "out",
            output=OutputOptions(shard_size=700_000),
            execution=ExecutionOptions(executor="processes"),
        )
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_an_unknown_executor_is_refused_with_the_known_ones() -> None:
    with pytest.raises(WeightspaceError, match=r"Unknown executor 'rai'.*ray"):
        list(run_jobs("rai", len, [([1],)], workers=1))


#: A program whose worker dies the first time that it is given a piece of work.
MORTAL = """
import os, pathlib
from weightspace.parallel import run_jobs

def die_at_first(note):
    if not pathlib.Path(note).exists():
        pathlib.Path(note).write_text("dying")
        os._exit(9)
    return note

if __name__ == "__main__":
    print(*sorted(run_jobs("processes", die_at_first, [("0",), ("1",), ("2",)], workers=2)))
"""


def test_the_work_of_a_process_that_died_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(MORTAL)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0 1 2\n", "")


def test_work_whose_processes_keep_dying_is_an_error_that_says_so() -> None:
    with pytest.raises(WeightspaceError, match=r"3 worker processes died .* exit code 9.*--memory"):
        list(run_jobs("processes", os._exit, [(9,)], workers=1))


def test_an_unknown_executor_is_refused_before_anything_is_planned(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"Unknown executor 'threds'.*threads"):
        merge_files(
            folder / "recipe.yml", tmp_path / "out", execution=ExecutionOptions(executor="threds"), dry_run=True
        )


#: A program whose worker notes its process and then works for a minute.
PROGRAM = """
import os, pathlib, time
from weightspace.parallel import run_jobs

def work(note):
    pathlib.Path(note).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    list(run_jobs("processes", work, [("note",)], workers=1))
"""


def test_workers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    note = tmp_path / "note"
    with subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path) as parent:
        wait_for(lambda: note.exists() and note.read_text() != "")
        parent.kill()
    worker = int(note.read_text())
    wait_for(lambda: not is_alive(worker))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of executors that pieces of work go to from now on."""
    used: list[str] = []

    def run_here(executor: str, function: Callable[..., Any], pieces: Any, **_: Any) -> Any:
        used.append(executor)
        return ((index, function(*piece)) for index, piece in enumerate(pieces))

    monkeypatch.setattr("weightspace.merging.out_of_core.worker_parts.run_jobs", run_here)
    return used


def test_a_small_merge_starts_no_process(
    folder: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = counted(monkeypatch)
    assert merged(folder, tmp_path / "out", executor="auto") == expected
    assert used == []


def test_workers_and_a_cluster_are_taken_at_their_word(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = counted(monkeypatch)
    merged(folder, tmp_path / "out", executor="auto", workers=1)
    merged(folder, tmp_path / "again", executor="auto", ray_address="auto")
    assert used == ["processes", "ray"]


@pytest.mark.parametrize(("gigabytes", "method", "executor"), [
    (0.004, "linear", "threads"),
    (0.2, "linear", "threads"),
    (60, "linear", "processes"),
    (0.25, "ties", "threads"),
    (0.5, "ties", "processes"),  # a second saved, where starting them takes .8
    (8, "ties", "processes"),
])  # fmt: skip
def test_the_executor_is_chosen_by_the_bytes(
    gigabytes: float, method: str, executor: str, folder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of([str(folder / name) for name in "ab"], method, base=str(folder / "base"))
    plan = make_plan(recipe, tmp_path / "out", PlanOptions(OutputOptions(700_000, hashes=False, recorded={})))
    jobs = [job for job in plan.jobs if job.name.endswith("weight")]
    each = plan.info(jobs[0].inputs[0]).numel * 2 * 2  # bytes of bfloat16 of two models
    many = jobs[:1] * round(gigabytes * 1e9 / each)
    assert chosen_executor(plan, many, ExecutionOptions(executor="auto", threads=2)) == executor
