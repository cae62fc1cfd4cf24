"""Methods on matrices compute them on the chosen device, all others on the CPU; see ``simulated_device``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from samples import VARIANTS, Variant, error, evidence_of, floats, sample
from simulated_device import NAME, simulated_device
from weightspace.cli import main

import weightspace as ws
from weightspace.checkpoints.stored_metadata import load_metadata
from weightspace.errors import WeightspaceError
from weightspace.merging import METHODS, OutputOptions, merge

ON_DEVICE = [name for name, row in METHODS.items() if row.on_device]


def test_the_methods_on_matrices_are_known() -> None:
    decomposing = [
        "core_space",
        "iso_c",
        "iso_cts",
        "knots",
        "optmerge",
        "subspace_boosting",
        "svc",
        "tsv_m",
    ]
    assert sorted(ON_DEVICE) == sorted([*decomposing, "regmean", "wudi"])


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one.row.on_device], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matrices_are_computed_on_the_device(variant: Variant, dtype: torch.dtype) -> None:
    """The same values on the device as on the CPU; nothing is moved in the middle, or tensors would mix."""
    models, base = sample(variant, dtype)
    evidence = evidence_of(variant.row, models)
    options: dict[str, Any] = {"base": base if variant.with_base else None, "evidence": evidence}
    options["parameters"] = variant.parameters
    expected = merge(models, variant.method, **options)
    with simulated_device() as operations:
        found = merge(models, variant.method, device=NAME, **options)
    assert operations
    for name, tensor in floats(expected).items():
        assert found[name].device.type == "cpu"
        assert error(found[name], tensor) < 1e-6, name


def test_large_matrices_are_computed_on_the_device() -> None:
    states = [{"w": torch.randn(140, 200, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1, 2)]
    expected = merge(states[1:], "tsv_m", base=states[0])["w"]
    with simulated_device() as operations:
        found = merge(states[1:], "tsv_m", base=states[0], device=NAME)["w"]
    assert sum("eigh" in operation for operation in operations) == 4  # two tasks, and two orthogonal factors
    assert error(found, expected) < 1e-6


def test_elementwise_methods_stay_on_the_cpu() -> None:
    states = [{"w": torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))} for seed in (0, 1, 2)]
    with simulated_device() as operations:
        merge(states[1:], "ties", base=states[0], device=NAME)
    assert operations == ["aten._local_scalar_dense.default"], "the check that the device has values"


def test_files_are_merged_on_the_device_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, seed in {"base": 0, "a": 1, "b": 2}.items():
        tensor = torch.randn(30, 20, generator=torch.Generator().manual_seed(seed))
        ws.save_checkpoint({"w": tensor}, f"{name}.safetensors")
    sources: list[str] = ["a.safetensors", "b.safetensors"]
    options: dict[str, Any] = {"method": "tsv_m", "base": "base.safetensors"}
    ws.merge_files(sources, "here.safetensors", **options)
    from weightspace.merging.out_of_core import executor

    monkeypatch.setattr(executor, "ThreadPoolExecutor", _InThisThread)
    with simulated_device() as operations:
        ws.merge_files(sources, "there.safetensors", output=OutputOptions(device=NAME), **options)
    assert operations
    assert '"device": "meta"' in load_metadata("there.safetensors")["parameters"]
    here, there = (ws.load_checkpoint(f"{name}.safetensors")["w"] for name in ("here", "there"))
    assert error(there, here) < 1e-6
    with simulated_device():
        assert ws.reproduce("there.safetensors").equal


class _InThisThread:
    """A pool whose jobs run as they are submitted, since a simulated device is that of one thread."""

    def __init__(self, threads: int, **options: object) -> None: ...

    def __enter__(self) -> "_InThisThread":
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, function, *arguments):  # type: ignore[no-untyped-def]
        from concurrent.futures import Future

        done: Future[None] = Future()
        done.set_result(function(*arguments))
        return done


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"The device 'cuda' cannot be used: .* \(none\)\."):
        merge([{"w": torch.zeros(2)}], "tsv_m", base={"w": torch.zeros(2)}, device="cuda")
    with pytest.raises(WeightspaceError, match="The device 'cuda' cannot be used"):
        ws.merge_files(["missing"], tmp_path / "out", method="tsv_m", base="no", output=OutputOptions(device="cuda"))
    run = CliRunner().invoke(main, ["merge", "x.yml", "-o", str(tmp_path / "out"), "--device", "cuda"])
    assert run.exit_code == 2
    assert "The device 'cuda' cannot be used" in run.stderr


def test_a_device_without_effect_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["merge", "a", "b", "-o", str(tmp_path / "out"), "--device", "cuda"])
    assert run.exit_code == 2
    assert "with linear, which is computed on the CPU, and without --task" in run.stderr
