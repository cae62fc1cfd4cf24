"""Recipes from the command line: warnings, ``--strict``, and the intermediate results of several documents."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.merging.out_of_core import stages

DOCUMENTS = """
name: half
merge_method: linear
models: [{model: a}, {model: b}]
parameters: {weight: 1}
---
merge_method: slerp
base_model: a
models: [{model: half, parameters: {density: 0.5}}]
parameters: {t: 0.5}
"""


def run(*options: str) -> Result:
    return CliRunner().invoke(cli.main, ["merge", "recipe.yml", "-o", "out", "--executor", "threads", *options])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        ws.save_checkpoint({"layers.0.weight": torch.eye(3) + number}, tmp_path / name)
    (tmp_path / "recipe.yml").write_text(DOCUMENTS)
    return tmp_path


def test_settings_without_effect_are_a_warning_and_an_error_with_strict(folder: Path) -> None:
    result = run("--strict")
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert "density" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "recipe.yml"]
    result = run()
    assert result.exit_code == 0
    assert "Warning: recipe.yml, document 2: models[0].parameters.density has no effect" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "out", "recipe.yml"]


def test_intermediate_results_are_kept_where_they_are_asked_for(folder: Path) -> None:
    assert run("--intermediate-dir", "kept").exit_code == 0
    assert torch.equal(ws.load_checkpoint("kept/half")["layers.0.weight"], torch.eye(3) + 0.5)


def test_a_dry_run_shows_the_plan_of_all_documents(folder: Path) -> None:
    result = run("--dry-run")
    assert result.exit_code == 0
    assert "slerp" in result.output
    assert not Path("out").exists()


def test_a_merge_that_ctrl_c_stops_says_where_its_results_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.run_plan

    def stop(plan: object, out: Path, *args: object, **options: object) -> object:
        if out.name == "out":
            raise KeyboardInterrupt
        return real(plan, out, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(stages, "run_plan", stop)
    monkeypatch.setattr(stages, "can_be_computed", lambda plan: False)
    result = run()
    assert result.exit_code == 130
    assert ".out.stages: rerun the command to resume" in result.output


@pytest.mark.parametrize("sources", [("a", "b"), ("recipe.yml",)])
def test_an_output_without_a_configuration_is_not_merged_to_be_verified(sources: tuple[str, ...], folder: Path) -> None:
    for name in "ab":
        ws.save_checkpoint({"w": torch.ones(2)}, name)
    (folder / "recipe.yml").write_text(
        "{name: x, merge_method: linear, models: [{model: a, parameters: {weight: 1}}]}\n---\n"
        "{merge_method: linear, models: [{model: x, parameters: {weight: 1}}]}\n"
    )
    done = CliRunner().invoke(cli.main, ["merge", *sources, "-o", "verified", "--verify"])
    assert done.exit_code == 2
    assert "needs a config.json, and a, from which" in done.stderr
    assert not (folder / "verified").exists()


def test_a_merge_that_resumes_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        ws.save_checkpoint({f"{number}.weight": torch.ones(9, 9) for number in range(6)}, name)
    calls, real = [0], os.pwrite

    def full(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    command = ["merge", "a", "b", "-o", "out", "--executor", "threads", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        assert "Make room and rerun the command to resume." in CliRunner().invoke(cli.main, command).stderr
    assert " of 6 tensors had been merged before" in CliRunner().invoke(cli.main, command).stderr
    assert "merged before" not in CliRunner().invoke(cli.main, command).stderr


def test_numbers_out_of_bounds_are_told_the_bound_that_they_miss(folder: Path) -> None:
    assert "0 is not at least 1." in run("--threads", "0").stderr
    assert "9999 is not at most 1024." in run("--threads", "9999").stderr
