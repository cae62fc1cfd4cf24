"""The fuzz test with any number of files: ``python tests/fuzz/long_run.py --files 20000``.

Each kind of file is read in a process of its own, so that one which ends the process is found as well. Prints a table
of what was read and refused, the slowest file, the most memory, and every failure with the number that makes it again.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from cases import KINDS_OF_FILES
from readers import FuzzError
from target import Target


def run_kind(name: str, numbers: range, seed: int, log: str) -> None:
    """Read damaged files of a kind, and write a line about each."""
    with tempfile.TemporaryDirectory() as folder, open(log, "a", buffering=1) as lines:
        target = Target(name, Path(folder) / "work")
        for number in numbers:
            lines.write(json.dumps({"kind": name, "begin": number}) + "\n")
            content = target.damaged(number, seed)
            entry: dict[str, Any] = {"kind": name, "number": number}
            try:
                outcome = target.run(content)
                entry |= {"result": outcome.result, "seconds": outcome.seconds, "memory": outcome.memory / 1e6}
            except FuzzError as error:
                entry |= {"result": "failed", "why": str(error), "content": repr(content[:200])}
                target = _again(name, folder, number)
            lines.write(json.dumps(entry) + "\n")


def _again(name: str, folder: str, number: int) -> Target:
    """Return a target in a fresh folder, after a failure that may have left something behind."""
    return Target(name, Path(folder) / f"after-{number}")


def finished(log: Path) -> list[dict[str, Any]]:
    """Return the lines of a log, one more for a file that ended the process."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    entries = [line for line in lines if "number" in line]
    if lines and "begin" in lines[-1]:
        entries.append({**lines[-1], "number": lines[-1]["begin"], "result": "failed", "why": "ended the process"})
    return entries


def run_all(files: int, seed: int, kinds: list[str], workers: int) -> list[dict[str, Any]]:
    """Read damaged files of all kinds; return an entry for each."""
    shares = sum(KINDS_OF_FILES[name].share for name in kinds)
    context = multiprocessing.get_context("spawn")
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        waiting = [(name, 0, math.ceil(files * KINDS_OF_FILES[name].share / shares)) for name in kinds]
        running: list[tuple[Any, str, int, int, Path]] = []
        while waiting or running:
            while waiting and len(running) < workers:
                name, start, stop = waiting.pop(0)
                log = Path(folder) / f"{name} {start}"
                process = context.Process(target=run_kind, args=(name, range(start, stop), seed, str(log)))
                process.start()
                running.append((process, name, start, stop, log))
            for job in [job for job in running if not job[0].is_alive()]:
                running.remove(job)
                done = finished(job[4]) if job[4].exists() else []
                entries += done
                failed = sum(entry["result"] == "failed" for entry in done)
                print(f"{job[1]}: {len(done)} files, {failed} failures", file=sys.stderr)
                if len(done) < job[3] - job[2]:  # goes on behind a file that ended the process
                    waiting.append((job[1], job[2] + max(1, len(done)), job[3]))
            time.sleep(0.1)
    return entries


def show(entries: list[dict[str, Any]], seconds: float) -> int:
    """Print the table and the failures; return how many there are."""
    print(f"{'kind':18}{'files':>7}{'read':>7}{'refused':>9}{'failed':>8}{'slowest s':>11}{'memory MB':>11}")
    for name in [*KINDS_OF_FILES, "all"]:
        own = [entry for entry in entries if name in (entry["kind"], "all")]
        counts = [sum(entry["result"] == result for entry in own) for result in ("read", "refused", "failed")]
        slowest = max((entry.get("seconds", 0) for entry in own), default=0)
        memory = max((entry.get("memory", 0) for entry in own), default=0)
        if own:
            numbers = "".join(f"{count:>{width}}" for count, width in zip(counts, (7, 9, 8), strict=True))
            print(f"{name:18}{len(own):>7}{numbers}{slowest:>11.2f}{memory:>11.0f}")
    failures = [entry for entry in entries if entry["result"] == "failed"]
    for entry in failures:
        print(f"\n{entry['kind']}, number {entry['number']}: {entry['why']}\n  {entry.get('content', '')}")
    print(f"\n{len(entries):,} files in {seconds:,.0f} s, {len(failures)} failures")
    return len(failures)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000, help="of all kinds together [20000]")
    parser.add_argument("--seed", type=int, default=1, help="other files for another one [1]")
    parser.add_argument("--kind", action="append", choices=list(KINDS_OF_FILES), help="only this one")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time [2]")
    arguments = parser.parse_args()
    start = time.perf_counter()
    kinds = arguments.kind or list(KINDS_OF_FILES)
    entries = run_all(arguments.files, arguments.seed, kinds, arguments.workers)
    sys.exit(1 if show(entries, time.perf_counter() - start) else 0)


if __name__ == "__main__":
    main()
