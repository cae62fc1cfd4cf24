"""Merges and soups that are killed at random moments: nothing is half-written, and a rerun gives the same bits.

    python benchmarks/kills.py [--count 150] [--seed 0] [--dir SCRATCH]

Each run is a whole command in a session of its own. It gets KILL, TERM or INT, to all its processes at once, to the
first alone, or to two workers one after the other, at moments that are drawn from the seed: a quarter of them anywhere,
the others once something is being written. Half of the commands find an older output under the name. Then

- under the name there is what was there before, or the whole new output;
- no process of the session is left;
- where only workers were hit, the command has gone on and succeeded;
- the command is run again and killed again, up to three times in all;
- at last it runs to its end, gives the bytes of a run that nobody ever disturbed, and leaves nothing beside them.

Prints a table, a row for each command and signal, and ends with status 1 if anything else was seen.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import weightspace as ws

#: Seconds that a command may take, and that its processes have to be gone after it.
LONGEST, GRACE = 600, 20

#: Whom a signal hits, and how often a command is killed before it may end.
WHOM, CHAIN = ("all", "first", "worker"), 3

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

TASK = """
import time
import torch
from torch import nn
from weightspace.tasks import ClassificationTask, Examples

def network():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4))

def examples():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=generator)
    labels = inputs[:, :4].argmax(1)
    return {split: Examples(inputs, labels) for split in ("train", "validation", "test")}

class Slow(ClassificationTask):
    def score(self, module, split="test"):
        time.sleep(0.05)
        return super().score(module, split)

task = Slow("slow", network, examples)
"""


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        name: in the table.
        words: its arguments, with ``OUT`` for the output.
        out: the name of the output.
        workers: it has processes that work for it.
        under_way: tells by the folder of the run whether anything is being written yet.
    """

    name: str
    words: tuple[str, ...]
    out: str
    workers: bool
    under_way: Callable[[Path], bool]


def commands(models: Path) -> list[Command]:
    """Return what is killed."""
    sources = (str(models / "a.safetensors"), str(models / "b.safetensors"), "-m", "task_arithmetic")
    merge = ("merge", *sources, "--base", str(models / "base.safetensors"), "--shard-size", "6MB", "-o", "OUT")
    tuned = sorted(str(path) for path in models.glob("tuned*"))
    soup = ("soup", *tuned, "--task", f"{models}/task.py:task", "-o", "OUT", "--workers", "2")

    def staged(folder: Path) -> bool:
        return any(folder.glob(".out*.merge/journal*"))

    def scored(folder: Path) -> bool:
        return any(folder.glob("cache/evaluations/*/*.json"))

    return [
        Command(
            "merge to a folder, processes", (*merge, "--threads", "2", "--executor", "processes"), "out", True, staged
        ),
        Command("merge to a file, threads", (*merge, "--executor", "threads"), "out.safetensors", False, staged),
        Command(
            "merge to a torch file, processes",
            (*merge, "--threads", "2", "--executor", "processes"),
            "out.pt",
            True,
            staged,
        ),
        Command("soup, processes", soup, "out.safetensors", True, scored),
    ]


def write_models(folder: Path) -> None:
    """Write two fine-tunes and their base to merge, and six of a small network for the soup."""
    folder.mkdir()
    for seed, name in enumerate(("a", "b", "base")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(500, 700, generator=generator) for layer in range(24)}
        ws.save_checkpoint(state, folder / f"{name}.safetensors")
    (folder / "task.py").write_text(TASK)
    task = ws.load_task(f"{folder}/task.py:task")
    base = ws.train(task, 0, epochs=2)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        state = {key: one + 0.05 * torch.randn(one.shape, generator=generator) for key, one in base.items()}
        ws.save_checkpoint(state, folder / f"tuned{seed}.safetensors")


def start(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command in a folder, in a session of its own."""
    code = "import sys; from weightspace.cli import main; main()"
    words = [command.out if word == "OUT" else word for word in command.words]
    environment = {**os.environ, "WEIGHTSPACE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def contents(path: Path) -> dict[str, bytes] | None:
    """Return what is under a name: the files of a folder, or the one file; None where there is nothing."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    return {"": path.read_bytes()} if path.exists() else None


def members(session: int) -> Iterator[tuple[int, str]]:
    """Yield the processes of a session that run, and their command lines."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(status[3]) == session and status[0] != "Z":
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue


def workers(session: int) -> list[int]:
    """Return the processes that work for a command, without what Python runs for itself."""
    return [number for number, line in members(session) if "spawn_main" in line]


def wait_until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> bool:
    """Wait for a condition; return False where the process ends before."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise TimeoutError("a command takes too long")


class Trial:
    """One command that is killed, run again and killed again, and run to its end at last."""

    def __init__(self, command: Command, folder: Path, new: dict[str, bytes], old: dict[str, bytes] | None) -> None:
        self.command, self.folder, self.new, self.old = command, folder, new, old
        self.out = folder / command.out
        self.problems: list[str] = []

    def strike(self, number: int, whom: str, moments: Sequence[float], *, anywhere: bool) -> tuple[int, str]:
        """Run the command and hit it at some moments; return how often it was hit, and what was under its name then."""
        process = start(self.command, self.folder)
        wait_until((lambda: True) if anywhere else (lambda: self.command.under_way(self.folder)), process)
        hits = 0
        for moment in moments:
            time.sleep(moment)
            if whom != "worker" or wait_until(lambda: workers(process.pid), process):
                hits += self._signal(process, number, whom)
        process.wait(LONGEST)
        self._check_gone(process.pid)
        seen = self._seen()
        if hits and whom == "worker" and (process.returncode or seen != "new"):
            self.problems.append(f"workers were hit, and the command ended with {process.returncode}")
        return hits, seen

    def _signal(self, process: subprocess.Popen[bytes], number: int, whom: str) -> bool:
        try:
            if whom == "all":
                os.killpg(process.pid, number)
            else:
                chosen = process.pid if whom == "first" else (workers(process.pid) or [0])[-1]
                if not chosen or process.poll() is not None:
                    return False
                os.kill(chosen, number)
        except ProcessLookupError:
            return False
        return True

    def _check_gone(self, session: int) -> None:
        end = time.monotonic() + GRACE
        while left := list(members(session)):
            if time.monotonic() > end:
                self.problems.append(f"processes are left: {left}")
                os.killpg(session, signal.SIGKILL)
                return
            time.sleep(0.01)

    def _seen(self) -> str:
        found = contents(self.out)
        if found == self.new:
            return "new"
        if found == self.old:
            return "old" if self.old is not None else "nothing"
        self.problems.append("something else than the old output or the new one")
        return "half"

    def run_again(self) -> None:
        """Run the command to its end, and check what it wrote and left."""
        process = start(self.command, self.folder)
        if process.wait(LONGEST):
            self.problems.append(f"the second run ended with {process.returncode}")
        if contents(self.out) != self.new:
            self.problems.append("the second run gave other bytes")
        left = [path.name for path in self.folder.iterdir() if path.name not in (self.command.out, "cache")]
        left += [path.name for path in self.folder.rglob("*.tmp")]
        if left:
            self.problems.append(f"left behind: {left}")
        for path in self.folder.glob("cache/evaluations/*/*"):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                self.problems.append(f"a damaged evaluation: {path.name}")


def undisturbed(command: Command, folder: Path) -> tuple[dict[str, bytes], float]:
    """Return what a command writes if nobody disturbs it, and the seconds from its first note to its end."""
    folder.mkdir()
    process = start(command, folder)
    wait_until(lambda: command.under_way(folder), process)
    begun = time.monotonic()
    if process.wait(LONGEST):
        raise RuntimeError(f"{command.name} ended with {process.returncode}")
    found = contents(folder / command.out)
    if found is None:
        raise RuntimeError(f"{command.name} wrote nothing")
    return found, time.monotonic() - begun


def older(command: Command, folder: Path) -> dict[str, bytes] | None:
    """Put an older output under the name."""
    ws.save_checkpoint({"older": torch.arange(1000.0)}, folder / command.out)
    return contents(folder / command.out)


def killed(trial: Trial, draw: random.Random, seconds: float, table: Counter[tuple[str, str, str, str]]) -> int:
    """Kill a command a few times, record the outcome, and return how often it was hit."""
    command, done = trial.command, 0
    for _ in range(CHAIN):
        number, whom = draw.choice(SIGNALS), draw.choice(WHOM if command.workers else WHOM[:2])
        anywhere = draw.random() < 0.25
        moments = [draw.uniform(0, seconds * (2 if anywhere else 1))]
        moments += [draw.uniform(0, seconds)] if whom == "worker" else []
        hits, seen = trial.strike(number, whom, moments, anywhere=anywhere)
        done += hits
        table[command.name, signal.Signals(number).name, whom, seen if hits else "too late"] += max(1, hits)
        if seen == "new":
            break
    return done


def main() -> int:
    """Kill commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in the background
    draw, table = random.Random(options.seed), Counter[tuple[str, str, str, str]]()
    problems = []
    with tempfile.TemporaryDirectory(dir=options.dir) as scratch:
        write_models(Path(scratch) / "models")
        listed = commands(Path(scratch) / "models")
        expected = {one.name: undisturbed(one, Path(scratch) / f"whole{at}") for at, one in enumerate(listed)}
        done = attempt = 0
        while done < options.count:
            command, aged = listed[attempt % len(listed)], draw.random() < 0.5
            new, seconds = expected[command.name]
            folder = Path(scratch) / f"run{attempt}"
            folder.mkdir()
            trial = Trial(command, folder, new, older(command, folder) if aged else None)
            done, attempt = done + killed(trial, draw, seconds, table), attempt + 1
            trial.run_again()
            problems += [f"run {attempt - 1}, {command.name}: {one}" for one in trial.problems]
            shutil.rmtree(folder, ignore_errors=True)
            print(f"\r{done}/{options.count} kills, {len(problems)} problems", end="", file=sys.stderr, flush=True)
    show(table)
    for problem in problems:
        print(problem)
    return int(bool(problems))


def show(table: Counter[tuple[str, str, str, str]]) -> None:
    """Print a row for each command and signal: whom it hit, and what was under the name then."""
    columns = ("nothing", "old", "new", "half", "too late")
    print("\n| command | signal | all / first / worker | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---|" * len(columns))
    for name, number in sorted({key[:2] for key in table}):
        rows = {key[2:]: count for key, count in table.items() if key[:2] == (name, number)}
        hits = [sum(c for (whom, seen), c in rows.items() if whom == one and seen != "too late") for one in WHOM]
        seen = [sum(count for (_, what), count in rows.items() if what == column) for column in columns]
        print(f"| {name} | {number} | {' / '.join(map(str, hits))} | {' | '.join(map(str, seen))} |")


if __name__ == "__main__":
    sys.exit(main())
