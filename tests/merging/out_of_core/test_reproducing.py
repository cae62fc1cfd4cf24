"""A merge made once more from what its output says of itself."""

from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.merging import OutputOptions, merge_files, reproduce


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {f"layers.{layer}.weight": torch.randn(30, 20, generator=generator) for layer in range(5)}
        ws.save_checkpoint(state, name)
    return ["a", "b"]


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt", "out", "sharded"])
def test_a_merge_with_random_masks_comes_out_the_same(out: str, sources: list[str]) -> None:
    shard_size = 5_000 if out == "sharded" else 10**9
    parameters = {"density": [0.5, 0.7], "seed": 7}
    merge_files(
        sources,
        out,
        method="dare_ties",
        base="base",
        parameters=parameters,
        output=OutputOptions(shard_size=shard_size),
    )
    found = reproduce(out)
    assert found.equal
    assert not found.differing
    assert not [path for path in Path().iterdir() if ".again." in path.name]


@pytest.mark.parametrize("hashes", [True, False])
def test_an_input_that_has_changed_since_is_named(hashes: bool, sources: list[str]) -> None:
    merge_files(sources, "out", output=OutputOptions(hashes=hashes))
    state = {name: tensor.clone() for name, tensor in ws.load_checkpoint("b").items()}
    state["layers.3.weight"][0, 0] += 1
    ws.save_checkpoint(state, "b")
    found = reproduce("out")
    assert not found.equal
    assert found.differing == ("model.safetensors",)
    assert found.changed == (("b/model.safetensors",) if hashes else ())


def test_merges_that_let_nan_through_and_users_methods_are_reproduced(sources: list[str]) -> None:
    Path("mine.py").write_text(
        "def mean(tensors, weights, base, *, power=1.0):\n"
        "    return sum(w * t for w, t in zip(weights, tensors)) / sum(weights) ** power\n"
    )
    state = {name: tensor.clone() for name, tensor in ws.load_checkpoint("b").items()}
    state["layers.0.weight"][0, 0] = float("nan")
    ws.save_checkpoint(state, "b")
    merge_files(
        sources, "out", method="mine.py:mean", parameters={"power": 1.0}, output=OutputOptions(allow_nonfinite=True)
    )
    assert torch.isnan(ws.load_checkpoint("out")["layers.0.weight"]).sum() == 1
    assert reproduce("out", allow_code=True).equal


def test_outputs_without_a_recipe_in_their_metadata_are_refused(sources: list[str]) -> None:
    with pytest.raises(CheckpointError, match="a has no merge recipe in its metadata"):
        reproduce("a")
    with pytest.raises(CheckpointError, match="nowhere"):
        reproduce("nowhere")


def test_users_code_that_has_changed_since_is_named(sources: list[str]) -> None:
    code = "def mine(tensors, weights, base, *, mode='mean'):\n    return {} * tensors[0] if mode == 'mean' else None\n"
    Path("mine.py").write_text(code.format(2))
    merge_files(sources, "out", method="mine.py:mine", parameters={"mode": "mean"})
    assert reproduce("out", allow_code=True).equal
    Path("mine.py").write_text(code.format(3))
    assert reproduce("out", allow_code=True).changed == ("mine.py:mine",)


def test_a_lenient_merge_is_reproduced_leniently(sources: list[str]) -> None:
    ws.save_checkpoint({**ws.load_checkpoint("a"), "more": torch.ones(3)}, "a")
    assert merge_files(sources, "out", lenient=True).warnings
    assert reproduce("out").equal


def test_evidence_that_has_changed_since_is_named(sources: list[str]) -> None:
    for name in sources:
        ws.save_checkpoint({key: t.square() for key, t in ws.load_checkpoint(name).items()}, f"{name}-fisher")
    merge_files(sources, "out", method="fisher", evidence=["a-fisher", "b-fisher"])
    assert reproduce("out").equal
    ws.save_checkpoint({key: t + 1 for key, t in ws.load_checkpoint("a-fisher").items()}, "a-fisher")
    assert reproduce("out").changed == ("a-fisher/model.safetensors",)


@pytest.mark.parametrize("missing", ["a", "base"])
def test_from_another_folder_it_says_where_the_sources_are_looked_for(
    missing: str, sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_files(sources, "out", method="ties", base="base")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for name in {"a", "b", "base"} - {missing}:
        Path(name).symlink_to(Path("..", name))
    with pytest.raises(CheckpointError, match=f"made from '{missing}', relative to the folder of that merge"):
        reproduce("../out")
