"""Jobs on a Ray cluster."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from weightspace.errors import WeightspaceError
from weightspace.parallel.processes import TRIES, threads_here, too_few_gpus
from weightspace.parallel.worker import do_job, first_line, pickling_error
from weightspace.user_code import find_modules, loaded_files

Result = TypeVar("Result")


def run_on_ray(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    gpus: float,
    address: str | None,
    report: Callable[[int, Any], None],
) -> Iterator[tuple[int, Result]]:
    """Run jobs on Ray, ``workers`` at a time; yield their indices and results as they finish."""
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, address, workers)
    running: dict[Any, int] = {}
    try:
        if gpus > (found := ray.cluster_resources().get("GPU", 0)):
            raise too_few_gpus(gpus, found, "the cluster has")
        remote = ray.remote(max_retries=TRIES - 1, num_gpus=gpus)(_job)
        common = (os.getcwd(), threads_here(), loaded_files(), ray.put(_packed(ray, function)))
        sent = _sent(ray, jobs)
        waiting = list(enumerate(jobs))[::-1]
        while waiting or running:
            while waiting and len(running) < workers:
                number, job = waiting.pop()
                arguments = [sent[id(argument)] if id(argument) in sent else _packed(ray, argument) for argument in job]
                running[remote.remote(*common, *arguments)] = number
            (finished, *_), _ = ray.wait(list(running))
            number, result = running.pop(finished), _fetched(ray, finished)
            report(number, result)
            yield number, result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _job(folder: str, threads: int | None, files: dict[str, str], *packed: bytes) -> Any:
    """Run a job on a Ray worker: go to the caller's folder, make the user's modules importable, unpickle and call."""
    from ray.cloudpickle import loads

    if os.path.isdir(folder):  # on the shared file system: paths may be relative to it
        os.chdir(folder)
    find_modules(files)
    function, *arguments = map(loads, packed)
    return do_job(threads, function, *arguments)


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Connect to the named cluster, or start one on this machine."""
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if named:
            ray.init(address=named, log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise WeightspaceError(f"No Ray cluster answers at {named or 'this machine'}: {first_line(error)}") from error


def _sent(ray: Any, jobs: Sequence[tuple[Any, ...]]) -> dict[int, Any]:
    """Put the arguments shared by several jobs into Ray's object store; return them by identity."""
    arguments = [argument for job in jobs for argument in {id(argument): argument for argument in job}.values()]
    counts = Counter(map(id, arguments))
    shared = {id(argument): argument for argument in arguments if counts[id(argument)] > 1}
    return {
        key: ray.put(_packed(ray, argument))
        for key, argument in shared.items()
        if not isinstance(argument, str | int | float | None)
    }


def _packed(ray: Any, value: Any) -> bytes:
    """Pickle a value."""
    try:
        return ray.cloudpickle.dumps(value)
    except Exception as error:  # pickling may raise anything
        raise pickling_error(error) from error


def _fetched(ray: Any, reference: Any) -> Any:
    """Return the result of a job, or raise its error."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise WeightspaceError(f"Ray gave up on a job after {TRIES} attempts: {first_line(error)}") from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WeightspaceError("The executor 'ray' needs Ray: pip install 'weightspace[ray]'.") from error
    return ray
