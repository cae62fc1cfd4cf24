"""Jobs: the same results in the same order on every executor, even if workers die."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.parallel import EXECUTORS, run_jobs
from weightspace.user_code import load_object

ALL_EXECUTORS = list(EXECUTORS)
WITH_WORKERS = [name for name in EXECUTORS if name != "serial"]


@pytest.fixture(scope="module", autouse=True)
def _one_cluster() -> Iterator[None]:
    """Start one local Ray of two workers, and two GPUs that it only believes in, for all tests here."""
    import ray

    ray.init(num_cpus=2, num_gpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


JOBS = '''
import os
import pathlib
import signal
import time


def late(number, seconds):
    time.sleep(seconds)
    return number * number


def wait_for_the_last(folder, number):
    """Square a number; 0 waits until 3 has begun."""
    if number == 3:
        (pathlib.Path(folder) / "begun").touch()
    while number == 0 and not (pathlib.Path(folder) / "begun").exists():
        time.sleep(0.01)
    return number * number


def fail(number):
    if number == 1:
        raise ValueError(f"job {number} is bad")
    return number


def die_once(folder, number):
    """Kill the worker when the job is first tried, and note every try."""
    with open(pathlib.Path(folder) / str(number), "a") as note:
        note.write("x")
    if number == 1 and (pathlib.Path(folder) / "1").stat().st_size == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_answering(folder, number):
    """Die in the middle of the answer when the job is first tried."""
    from multiprocessing.connection import Connection

    def half(self, message):
        os.write(self._handle, bytes(message)[: len(message) // 2])
        os._exit(9)

    note = pathlib.Path(folder) / str(number)
    if number == 1 and not note.exists():
        note.touch()
        Connection._send = half
    return number


def end_of_file(number):
    raise EOFError("a file of mine is too short")


def broken_pipe(number):
    raise BrokenPipeError("a pipe of mine is broken")


def die(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def add(state, factor):
    return float(factor * state["w"].sum())


def devices(number):
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")
'''


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Return functions of a user's file by their names."""
    path = tmp_path_factory.mktemp("code") / "jobs.py"
    path.write_text(JOBS)
    found = {name: load_object(f"{path}:{name}") for name in ("late",)}

    def find(name: str) -> Any:
        import sys

        module = sys.modules[found["late"].__module__]
        return getattr(module, name)

    return find


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
def test_results_come_in_the_order_of_the_jobs_and_are_reported_as_they_are_done(
    executor: str, jobs: Any, tmp_path: Path
) -> None:
    if executor == "serial":
        (tmp_path / "begun").touch()
    told: list[tuple[int, int]] = []
    calls = [(str(tmp_path), number) for number in range(4)]
    waiting = jobs("wait_for_the_last")
    found = list(run_jobs(executor, waiting, calls, workers=2, on_done=lambda *done: told.append(done)))
    assert found == [0, 1, 4, 9]
    assert sorted(told) == list(enumerate(found))
    assert [number for number, _ in told[:2]] == ([0, 1] if executor == "serial" else [1, 2])  # 0 keeps none back


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
def test_an_exception_of_a_job_is_raised_here(executor: str, jobs: Any) -> None:
    with pytest.raises(ValueError, match="job 1 is bad"):
        list(run_jobs(executor, jobs("fail"), [(number,) for number in range(4)], workers=2))


@pytest.mark.parametrize("executor", WITH_WORKERS)
def test_a_job_whose_worker_died_is_tried_again(executor: str, jobs: Any, tmp_path: Path) -> None:
    calls = [(str(tmp_path), number) for number in range(4)]
    assert list(run_jobs(executor, jobs("die_once"), calls, workers=1)) == [0, 1, 2, 3]
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert tries["1"] == 2
    assert tries["0"] == 1  # what was done is not done again


def test_a_worker_that_dies_in_the_middle_of_its_answer_is_one_that_died(jobs: Any, tmp_path: Path) -> None:
    calls = [(str(tmp_path), number) for number in range(3)]
    assert list(run_jobs("processes", jobs("die_answering"), calls, workers=1)) == [0, 1, 2]


@pytest.mark.parametrize(("name", "error"), [("end_of_file", EOFError), ("broken_pipe", BrokenPipeError)])
def test_an_exception_of_a_job_is_not_taken_for_a_death(name: str, error: type[Exception], jobs: Any) -> None:
    with pytest.raises(error, match="of mine"):
        list(run_jobs("processes", jobs(name), [(1,)], workers=1))


@pytest.mark.parametrize("executor", WITH_WORKERS)
def test_a_job_that_kills_every_worker_is_given_up(executor: str, jobs: Any) -> None:
    with pytest.raises(WeightspaceError, match=r"3 worker processes died .* exit code -9|after 3 attempts"):
        list(run_jobs(executor, jobs("die"), [(number,) for number in range(3)], workers=1))


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
def test_state_dicts_that_jobs_share_arrive_whole(executor: str, jobs: Any) -> None:
    state = {"w": torch.arange(1000.0)}
    calls = [(state, float(factor)) for factor in range(3)]
    assert list(run_jobs(executor, jobs("add"), calls, workers=2)) == [0.0, 499500.0, 999000.0]


@pytest.mark.parametrize("executor", WITH_WORKERS)
def test_workers_compute_with_as_many_threads_as_this_process(executor: str, tmp_path: Path) -> None:
    path = tmp_path / "threads.py"
    path.write_text("import torch\n\ndef threads():\n    return torch.get_num_threads()\n")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(run_jobs(executor, load_object(f"{path}:threads"), [()], workers=1)) == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("executor", "gpus", "expected"),
    [("ray", 1, {"0", "1"}), ("processes", 1, {"0", "1"}), ("processes", 2, {"0,1"}), ("processes", 0.5, {"0", "1"})],
)
def test_a_worker_sees_the_gpus_that_it_asked_for(
    executor: str, gpus: float, expected: set[str], jobs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = set(run_jobs(executor, jobs("devices"), [(number,) for number in range(4)], workers=2, gpus=gpus))
    assert seen
    assert seen <= expected


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
def test_more_gpus_than_there_are_is_an_error(executor: str, jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(WeightspaceError, match=r"needs 3 GPUs; .* has 2"):
        list(run_jobs(executor, jobs("late"), [(1, 0.0)], gpus=3))


@pytest.mark.parametrize("executor", WITH_WORKERS)
def test_tasks_that_cannot_be_pickled_are_reported(executor: str, jobs: Any) -> None:
    with pytest.raises(WeightspaceError, match=r"Could not pickle the task for a worker.*no lambda"):
        list(run_jobs(executor, jobs("late"), [((number for number in "ab"), 0.0)], workers=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "rai"}, r"Unknown executor 'rai'.*serial, processes, ray"),
        ({"workers": 0}, "found 0"),
        ({"gpus": -1}, "found 1, -1"),
        ({"ray_address": "auto"}, "executor is 'serial', not 'ray'"),
    ],
)
def test_invalid_executors_are_refused(options: dict[str, Any], message: str, jobs: Any) -> None:
    with pytest.raises(WeightspaceError, match=message):
        list(run_jobs(**{"executor": "serial", "function": jobs("late"), "jobs": [(1, 0.0)], **options}))


def test_a_curve_is_the_same_wherever_its_points_are_scored(
    digits_cnn: Any, cnn_states: tuple[StateDict, StateDict]
) -> None:
    told: list[int] = []
    curves = [
        ws.loss_curve(
            digits_cnn,
            *cnn_states,
            4,
            executor=executor,
            workers=2,
            on_progress=lambda at: told.append(at.index),
        )
        for executor in ALL_EXECUTORS
    ]
    assert curves[0] == curves[1] == curves[2]
    assert told == [1, 2, 3, 4] * 3


def test_a_matrix_is_the_same_on_ray(digits_mlp: Any, mlp_states: tuple[StateDict, StateDict]) -> None:
    states = [*mlp_states, mlp_states[0]]
    here, there = (
        ws.barrier_matrix(digits_mlp, states, points=3, executor=executor, workers=2) for executor in ("serial", "ray")
    )
    assert here == there


USER_TASK = '''
import neighbour
from weightspace.tasks import ClassificationTask

class Mine(ClassificationTask):
    """A task with a class of its own, unknown to other processes."""

    def score(self, module, split="test"):
        return {name: value + neighbour.SHIFT for name, value in super().score(module, split).items()}

def build():
    return neighbour.mlp(64, (16,), 10)

task = Mine("mine", build, neighbour.digits_examples)
'''


@pytest.mark.parametrize("executor", ALL_EXECUTORS)
def test_a_task_of_a_users_file_is_sent_to_workers(executor: str, tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text(
        "from weightspace.zoo.architectures import mlp\n"
        "from weightspace.zoo.digits import digits_examples\n"
        "SHIFT = 5.0\n"
    )
    (tmp_path / "experiment.py").write_text(USER_TASK)
    task = ws.load_task(f"{tmp_path}/experiment.py:task")
    a, b = ws.train(task, 0, epochs=1), ws.train(task, 1, epochs=1)
    expected = ws.loss_curve(task, a, b, 3, executor="serial")
    assert min(expected.loss) > 5
    assert ws.loss_curve(task, a, b, 3, executor=executor, workers=2) == expected


def test_without_a_cluster_at_the_address_it_says_so(monkeypatch: pytest.MonkeyPatch, jobs: Any) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", _refuse)
    with pytest.raises(WeightspaceError, match=r"No Ray cluster answers at 10\.0\.0\.1:1: nobody there"):
        list(run_jobs("ray", jobs("late"), [(1, 0.0)], ray_address="10.0.0.1:1"))


def _refuse(**options: Any) -> None:
    assert options["address"] == "10.0.0.1:1"
    raise ConnectionError("nobody there")


def test_an_interrupt_ends_the_pool_at_once(jobs: Any) -> None:
    begin = time.monotonic()
    running = run_jobs("processes", jobs("late"), [(0, 0.0), (1, 30.0), (2, 30.0)], workers=1)
    assert next(running) == 0
    del running
    assert time.monotonic() - begin < 25
