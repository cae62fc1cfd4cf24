"""The uniform soup: the mean, exact on copies, one ingredient at a time."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kitchen import PLAIN, TASK, equal, fine_tunes, saved

import weightspace as ws
from weightspace.checkpoints import StateDict, reader
from weightspace.checkpoints.reader import read_checkpoint
from weightspace.connectivity import reset_statistics
from weightspace.errors import CheckpointError, WeightspaceError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-3, 4, (7, 5), generator=generator)
    return {"weight": (scale * torch.randn(7, 5, generator=generator)).to(dtype), "steps": torch.tensor([3, 4])}


@settings(deadline=None)
@given(count=st.integers(1, 70), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_the_soup_of_copies_is_the_copy_bit_for_bit(count: int, dtype: torch.dtype, seed: int) -> None:
    state = random_state(seed, dtype)
    state["weight"][0, :3] = torch.tensor([0.0, -0.0, math.inf if dtype != torch.complex64 else 1.0])
    assert equal(ws.uniform_soup([state] * count), state)


@settings(deadline=None)
@given(count=st.integers(1, 9), seed=st.integers(0, 99))
def test_it_is_the_mean_of_the_ingredients_rounded_once(count: int, seed: int) -> None:
    states = [random_state(seed + number) for number in range(count)]
    exact = torch.stack([state["weight"].double() for state in states]).mean(0)
    found = ws.uniform_soup(states)["weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=2**-24 * 1.01, atol=1e-12)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ""])
def test_files_and_states_give_the_same_bits(tmp_path: Path, suffix: str) -> None:
    _, states = fine_tunes(PLAIN, 3)
    assert equal(ws.uniform_soup(saved(states, tmp_path, suffix)), ws.uniform_soup(states))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ""])
@pytest.mark.parametrize("change", ["shorter", "other"])
def test_a_file_that_changes_while_it_is_read_is_one_line(
    change: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = saved([random_state(seed) for seed in range(3)], tmp_path, suffix)
    file = paths[1] / "model.safetensors" if paths[1].is_dir() else paths[1]
    get = reader.CheckpointReader.__getitem__

    def meanwhile(self: reader.CheckpointReader, name: str) -> torch.Tensor:
        if self.contents.path == paths[1]:
            os.truncate(file, 100) if change == "shorter" else os.utime(file, ns=(1, 1))
        return get(self, name)

    monkeypatch.setattr(reader.CheckpointReader, "__getitem__", meanwhile)
    message = "has become shorter" if change == "shorter" else "has changed while it was read"
    with pytest.raises(CheckpointError, match=message):
        ws.uniform_soup(paths)


def test_ingredients_that_change_afterwards_do_no_harm(tmp_path: Path) -> None:
    paths = saved([random_state(seed) for seed in range(2)], tmp_path, ".safetensors")
    states = [read_checkpoint(path) for path in paths]
    for path in paths:
        os.truncate(path, 0)
    assert equal(ws.uniform_soup(states), ws.uniform_soup([random_state(seed) for seed in range(2)]))


def test_ingredients_stay_as_they_were_and_nothing_of_them_is_shared() -> None:
    states = [random_state(0), random_state(1)]
    ws.uniform_soup(states)
    ws.uniform_soup(states[:1])["weight"].zero_()
    assert all(equal(state, random_state(seed)) for seed, state in enumerate(states))


def test_dtypes_are_promoted() -> None:
    found = ws.uniform_soup([random_state(0, torch.bfloat16), random_state(1, torch.float16)])
    assert found["weight"].dtype == torch.float32


def test_names_tied_in_all_stay_tied_and_those_tied_in_some_do_not() -> None:
    def state(seed: int, *, tied: bool) -> StateDict:
        weight = random_state(seed)["weight"]
        return {"a": weight, "b": weight if tied else weight + 1}

    both = ws.uniform_soup([state(0, tied=True), state(1, tied=True)])
    assert both["a"].data_ptr() == both["b"].data_ptr()
    for order in ((True, False, True), (False, True, True), (True, True, False)):
        states = [state(seed, tied=tied) for seed, tied in enumerate(order)]
        found = ws.uniform_soup(states)
        assert found["a"].data_ptr() != found["b"].data_ptr()
        for name in "ab":
            torch.testing.assert_close(found[name], torch.stack([one[name] for one in states]).mean(0))


def test_of_counters_the_largest_is_kept_and_other_integers_must_agree() -> None:
    states = [{"norm.num_batches_tracked": torch.tensor(count)} for count in (3, 9, 5)]
    assert ws.uniform_soup(states)["norm.num_batches_tracked"] == 9
    with pytest.raises(WeightspaceError, match=r"'steps' holds .* models 0 and 1 differ in 1 of 2 elements"):
        ws.uniform_soup([random_state(0), {**random_state(1), "steps": torch.tensor([3, 5])}])


def test_with_a_task_batchnorm_is_reset() -> None:
    _, states = fine_tunes(TASK, 3)
    averaged = ws.uniform_soup(states, statistics="none")
    assert equal(ws.uniform_soup(states, TASK), reset_statistics(TASK, averaged) | {})
    assert equal(ws.uniform_soup(states, TASK, statistics="none"), averaged)
    assert equal(ws.uniform_soup(states[:1], TASK), states[0])


class Untrained:
    """A task whose training data are gone."""

    name, objective, example_args = TASK.name, TASK.objective, ()
    network, loss, score = TASK.network, TASK.loss, TASK.score

    def batches(self, split: str, seed: int) -> Any:
        return [] if split == "train" else TASK.batches(split, seed)  # type: ignore[arg-type]


def test_without_training_batches_statistics_are_averaged_unless_insisted_on() -> None:
    _, states = fine_tunes(TASK, 2)
    assert equal(ws.uniform_soup(states, Untrained()), ws.uniform_soup(states, statistics="none"))
    with pytest.raises(WeightspaceError, match="no batches"):
        ws.uniform_soup(states, Untrained(), statistics="reset")
    with pytest.raises(WeightspaceError, match="found no task"):
        ws.uniform_soup(states, statistics="reset")


def test_invalid_soups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match="a list of at least one"):
        ws.uniform_soup([])
    with pytest.raises(WeightspaceError, match="expected a list of paths or state dicts"):
        ws.uniform_soup("a.pt")
    with pytest.raises(CheckpointError, match=r"0 and 1 do not fit together: 1 shape"):
        ws.uniform_soup([random_state(0), {**random_state(0), "weight": torch.ones(2)}])
    with pytest.raises(CheckpointError, match=r"gone\.pt"):
        ws.uniform_soup([tmp_path / "gone.pt"])
