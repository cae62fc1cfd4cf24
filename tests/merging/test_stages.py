"""Recipes of several documents, from files to files: the same as the stages by hand, resumed, cleaned up, or kept."""

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict, provenance
from weightspace.checkpoints.stored_metadata import load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files, reproduce
from weightspace.merging.out_of_core import graph, stages

FIRST = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.7}}]
"""
SECOND = """
name: second
merge_method: ties
base_model: base
models: [{model: first, parameters: {weight: 0.5, density: 0.7}}, {model: c, parameters: {weight: 0.4, density: 0.6}}]
"""
LAST = "merge_method: slerp\nbase_model: first\nmodels: [{model: second}]\nparameters: {t: [0.2, 0.8]}\n"
ALL = f"{FIRST}---{SECOND}---\n{LAST}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models ``base``, ``a``, ``b``, ``c`` in bfloat16, and an empty folder of temporary files.

    Results in between are on the disk, as of methods that need it; test_graphs.py has those that are computed.
    """
    monkeypatch.setattr(graph, "_MAX_STAGES", 0)
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    for name in ("base", "a", "b", "c"):
        state: StateDict = {
            "model.embed_tokens.weight": torch.randn(8, 4, generator=generator).bfloat16(),
            **{f"model.layers.{i}.mlp.weight": torch.randn(4, 4, generator=generator).bfloat16() for i in range(3)},
            "steps": torch.tensor([7]),
        }
        ws.save_checkpoint(state, tmp_path / "work" / name)
        config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3, "torch_dtype": "bfloat16"}
        (tmp_path / "work" / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "work"


def merge(text: str, out: str = "out", *, intermediate_dir: str | None = None, **options: Any) -> stages.MergeReport:
    Path("recipe.yml").write_text(text)
    execution = ExecutionOptions(fsync=False, intermediate_dir=intermediate_dir)
    return merge_files("recipe.yml", out, execution=execution, **options)


def listing() -> list[str]:
    assert not list(Path("../temporary").iterdir())
    return sorted(path.name for path in Path().iterdir() if path.name not in ("base", "a", "b", "c", "recipe.yml"))


def by_hand(out: str) -> StateDict:
    """Return the output of the three documents, merged one after the other in float32."""
    Path("hand").mkdir()
    for name, text in (("first", FIRST), ("second", SECOND.replace("first", "hand/first")), ("last", LAST)):
        text = text.replace("base_model: first", "base_model: hand/first").replace(
            "model: second", "model: hand/second"
        )
        Path("recipe.yml").write_text(text + ("out_dtype: float32\n" if name != "last" else f"out_dtype: {out}\n"))
        merge_files("recipe.yml", f"hand/{name}", execution=ExecutionOptions(fsync=False))
    return ws.load_checkpoint("hand/last")


def equal(one: StateDict, other: StateDict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


def test_documents_merge_to_what_their_stages_by_hand_merge_to(folder: Path) -> None:
    merge(ALL)
    assert listing() == ["out"]
    assert equal(ws.load_checkpoint("out"), by_hand("bfloat16"))
    config = json.loads(Path("out/config.json").read_text())
    assert (config["torch_dtype"], config["num_hidden_layers"]) == ("bfloat16", 3)


def test_intermediate_results_are_not_rounded_to_the_dtype_of_the_models(folder: Path) -> None:
    half = "merge_method: linear\nmodels: [{model: %s}, {model: %s}]\nparameters: {weight: 1}\ndtype: bfloat16\n"
    merge(f"name: x\n{half % ('a', 'b')}---\nname: y\n{half % ('base', 'c')}---\n{half % ('x', 'y')}")
    merged = ws.load_checkpoint("out")
    models = [ws.load_checkpoint(name) for name in ("a", "b", "base", "c")]
    for name, tensor in merged.items():
        if tensor.is_floating_point():
            exact = torch.stack([model[name].double() for model in models]).mean(dim=0)
            assert torch.equal(tensor, exact.bfloat16())


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        ("", "", torch.bfloat16),
        ("dtype: float16", "", torch.float32),
        ("out_dtype: float32", "", torch.float32),
        ("dtype: float64", "", torch.float64),
        ("dtype: float64", "dtype: bfloat16", torch.bfloat16),
        ("", "out_dtype: float16", torch.float16),
    ],
)
def test_the_output_has_the_dtype_that_the_documents_ask_for(
    first: str, last: str, expected: torch.dtype, folder: Path
) -> None:
    final = f"merge_method: linear\nmodels: [{{model: first}}, {{model: c}}]\nparameters: {{weight: 1}}\n{last}"
    merge(f"{FIRST}{first}\n---\n{final}", intermediate_dir="kept")
    assert ws.load_checkpoint("out")["model.embed_tokens.weight"].dtype == expected
    kept = ws.load_checkpoint("kept/first")["model.embed_tokens.weight"]
    assert kept.dtype == (torch.float64 if "float64" in first else torch.float32)


def test_a_document_of_float64_models_stays_in_float64(folder: Path) -> None:
    for name in ("a", "b"):
        ws.save_checkpoint(
            {
                key: tensor.double() if tensor.is_floating_point() else tensor
                for key, tensor in ws.load_checkpoint(name).items()
            },
            name,
        )
    merge(f"{FIRST}---\nmerge_method: passthrough\nmodels: [{{model: first}}]\n")
    expected = merge_files(["a", "b"], "mean", weights=[0.3, 0.7], execution=ExecutionOptions(fsync=False)).out
    assert equal(ws.load_checkpoint("out"), ws.load_checkpoint(expected))


def test_intermediate_results_are_kept_where_the_user_says(folder: Path) -> None:
    merge(ALL, intermediate_dir="kept")
    assert listing() == ["kept", "out"]
    assert sorted(path.name for path in Path("kept").iterdir()) == [".first.plan", ".second.plan", "first", "second"]
    expected = by_hand("bfloat16")
    for name in ("first", "second"):
        assert equal(ws.load_checkpoint(f"kept/{name}"), ws.load_checkpoint(f"hand/{name}"))
        assert json.loads(Path(f"kept/{name}/config.json").read_text())["torch_dtype"] == "float32"
        assert reproduce(f"kept/{name}").equal
    assert equal(ws.load_checkpoint("out"), expected)


def test_documents_that_the_output_is_not_made_from_are_merged_only_where_they_are_kept(folder: Path) -> None:
    other = "name: other\nmerge_method: passthrough\nmodels: [{model: c}]\n"
    report = merge(f"{other}---\n{FIRST}---\n{LAST.replace('second', 'a')}")
    assert [line for line in report.warnings if "Not merged: 'other'" in line]
    report = merge(f"{other}---\n{FIRST}---\n{LAST.replace('second', 'a')}", intermediate_dir="kept")
    assert not report.warnings
    assert ws.load_checkpoint("kept/other").keys() == ws.load_checkpoint("c").keys()


def test_a_dry_run_plans_all_and_leaves_nothing(folder: Path) -> None:
    report = merge(ALL, dry_run=True)
    assert listing() == []
    assert report.tensors == 5
    done = merge(ALL)
    assert (report.read_bytes, report.written_bytes) == (done.read_bytes, done.written_bytes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: c,", "model: nowhere,"), "nowhere does not exist"),
        (("density: 0.6", "density: 6"), "'density' must be a finite number from 0 to 1"),
        (("model: second}]", "model: second}, {model: c}, {model: a}]"), "'slerp' takes 1 model "),
        (("base_model: first", "base_model: frist"), "frist does not exist"),
    ],
)
def test_a_mistake_in_any_document_is_an_error_before_anything_is_written(
    change: tuple[str, str], message: str, folder: Path
) -> None:
    with pytest.raises(WeightspaceError, match=message):
        merge(ALL.replace(*change))
    assert listing() == []


def test_shapes_that_do_not_fit_a_result_are_seen_before_anything_is_written(folder: Path) -> None:
    ws.save_checkpoint({**ws.load_checkpoint("c"), "model.layers.1.mlp.weight": torch.ones(4, 5)}, "c")
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.weight' is .* in first"):
        merge(
            f"{FIRST}---\nmerge_method: linear\nmodels: [{{model: first}}, {{model: c}}]\nparameters: {{weight: 1}}\n"
        )
    assert listing() == []


def test_a_mistake_that_only_the_values_show_leaves_nothing(folder: Path) -> None:
    ws.save_checkpoint({**ws.load_checkpoint("c"), "model.layers.1.mlp.weight": torch.full((4, 4), torch.nan)}, "c")
    with pytest.raises(WeightspaceError, match="NaN"):
        merge(ALL)
    assert listing() == []


def interrupted(call: int) -> Callable[..., stages.MergeReport]:
    """Return ``run_plan`` that is stopped after it has run ``call`` times."""
    real, calls = stages.run_plan, 0

    def run(*args: object, **options: object) -> stages.MergeReport:
        nonlocal calls
        calls += 1
        if calls > call:
            raise KeyboardInterrupt
        return real(*args, **options)  # pyright: ignore[reportArgumentType]

    return run


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_merge_takes_the_results_that_are_whole(
    done: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages, "run_plan", interrupted(done))
        with pytest.raises(KeyboardInterrupt):
            merge(ALL)
    assert listing() == [".out.stages"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "run_plan", interrupted(3 - done))
        assert merge(ALL).resumed == 5 * done
    assert listing() == ["out"]
    merge(ALL, "again")
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


@pytest.mark.parametrize("replacements", range(1, 6))
def test_a_killed_merge_of_documents_resumes_to_the_same_bytes(replacements: int, folder: Path) -> None:
    merge(ALL, "whole")

    def die() -> None:
        real, calls = os.replace, 0

        def replace(*args: object, **options: object) -> None:
            nonlocal calls
            calls += 1
            if calls == replacements:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args, **options)  # pyright: ignore[reportArgumentType]

        os.replace = replace
        merge(ALL)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    if process.exitcode:
        assert process.exitcode == -signal.SIGKILL
        assert not Path("out").exists()
    for path in Path("../temporary").iterdir():
        shutil.rmtree(path)
    merge(ALL)
    assert listing() == ["out", "whole"]
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("change", ["recipe", "model", "result"])
def test_intermediate_results_of_other_settings_are_recomputed(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(ALL, intermediate_dir="kept")
    text = ALL
    if change == "recipe":
        text = ALL.replace("weight: 0.3", "weight: 0.4")
    elif change == "model":
        ws.save_checkpoint(
            {key: tensor * 2 for key, tensor in ws.load_checkpoint("a").items() if key != "steps"}
            | {"steps": torch.tensor([7])},
            "a",
        )
    else:
        changed = {key: tensor * 2 for key, tensor in ws.load_checkpoint("kept/first").items()}
        ws.save_checkpoint(changed, "kept/first")
        with pytest.raises(CheckpointError, match="kept/first already exists, and weightspace has no record"):
            merge(text, intermediate_dir="kept")
        ws.save_checkpoint(changed, "kept/first", metadata=provenance([], "linear", {}))
    merge(text, intermediate_dir="kept")
    merge(text, "fresh")
    assert equal(ws.load_checkpoint("out"), ws.load_checkpoint("fresh"))


def test_results_that_are_there_are_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(ALL, intermediate_dir="kept")
    monkeypatch.setattr(stages, "run_plan", interrupted(1))
    merge(ALL, "again", intermediate_dir="kept")
    assert equal(ws.load_checkpoint("out"), ws.load_checkpoint("again"))


def test_a_merge_of_documents_is_reproduced(folder: Path) -> None:
    merge(ALL)
    assert reproduce("out").equal
    options = json.loads(load_metadata(Path("out"))["parameters"])
    assert sorted(options["stages"]) == ["first", "second"]
    assert [entry["name"] for entry in options["stages"]["first"]] == ["a/model.safetensors", "b/model.safetensors"]


def test_random_masks_depend_on_the_name_of_a_document_not_on_its_place(folder: Path) -> None:
    model = "{model: %s, parameters: {weight: 1, density: 0.5}}"
    dare = f"merge_method: dare_ties\nbase_model: base\nmodels: [{model % 'first'}, {model % 'c'}]\n"
    merge(f"{FIRST}---\n{dare}")
    merge(f"{FIRST}---\n{dare}", "elsewhere/out.safetensors", intermediate_dir="kept")
    assert equal(ws.load_checkpoint("out"), ws.load_checkpoint("elsewhere/out.safetensors"))


@pytest.mark.parametrize("name", ["org/model", "../../up", "x.safetensors", ".hidden", "ü" * 100, "a", "x y", "-o"])
def test_names_of_documents_cannot_leave_the_folder(name: str, folder: Path) -> None:
    quoted = json.dumps(name)
    second = f"merge_method: passthrough\nmodels: [{{model: {quoted}}}]\n"
    first = FIRST.replace("name: first", f"name: {quoted}").replace("model: a,", "model: base,")
    # Weights of few bits, so that the float32 in between changes no result half-way between two of bfloat16.
    merge(f"{first.replace('0.3', '0.25').replace('0.7', '0.75')}---\n{second}")
    assert listing() == ["out"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["temporary", "work"]
    merge_files(["base", "b"], "mean", weights=[0.25, 0.75], execution=ExecutionOptions(fsync=False))
    assert equal(ws.load_checkpoint("out"), ws.load_checkpoint("mean"))


def test_a_result_can_carry_an_adapter_and_give_the_tokenizer(folder: Path) -> None:
    factors = {
        f"base_model.model.model.layers.0.mlp.lora_{key}.weight": torch.ones(*shape)
        for key, shape in (("A", (1, 4)), ("B", (4, 1)))
    }
    ws.save_checkpoint(factors, "lora/adapter_model.safetensors")
    Path("lora/adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["mlp"]}'
    )
    Path("a/tokenizer.json").write_text('{"model": {"vocab": {"x": 0}}}')
    merge(f"{FIRST}---\nmerge_method: passthrough\nmodels: [{{model: first+lora}}]\ntokenizer_source: first\n")
    merge_files(["a", "b"], "mean", weights=[0.3, 0.7], dtype="float32", execution=ExecutionOptions(fsync=False))
    expected = ws.load_checkpoint("mean")["model.layers.0.mlp.weight"] + 1
    assert torch.equal(ws.load_checkpoint("out")["model.layers.0.mlp.weight"], expected.bfloat16())
    assert Path("out/tokenizer.json").exists()


def test_a_users_folder_is_not_replaced(folder: Path) -> None:
    shutil.copytree("c", "kept/first")
    with pytest.raises(CheckpointError, match="kept/first exists already and was not made by a merge"):
        merge(ALL, intermediate_dir="kept")
    assert equal(ws.load_checkpoint("kept/first"), ws.load_checkpoint("c"))


@pytest.mark.parametrize(("kept", "out"), [("out", "out"), ("kept", "kept/first"), ("kept", "kept/first/out")])
def test_intermediate_results_and_output_do_not_collide(kept: str, out: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="overlap; expected separate paths"):
        merge(ALL, out, intermediate_dir=kept)
    assert listing() == []


@pytest.mark.parametrize("planted", [".out.stages", ".out.stages/first", ".out.stages/.first.plan"])
def test_planted_links_are_not_followed(planted: str, folder: Path) -> None:
    Path("precious").mkdir()
    Path("precious/file").write_text("mine")
    Path(planted).parent.mkdir(exist_ok=True)
    os.symlink(Path("precious" if "plan" not in planted else "precious/file").resolve(), planted)
    with pytest.raises(CheckpointError, match="is a link"):
        merge(ALL)
    assert Path("precious/file").read_text() == "mine"
    assert sorted(path.name for path in Path("precious").iterdir()) == ["file"]


def test_a_disk_without_room_for_all_results_is_reported_before_anything_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1500))
    with pytest.raises(CheckpointError, match="intermediate results need"):
        merge(ALL)
    assert listing() == []


def test_documents_cannot_be_aligned(folder: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    spec = ws.derive_spec(network, (torch.zeros(1, 2),))
    with pytest.raises(WeightspaceError, match="3 documents cannot be aligned"):
        merge(ALL, align=ws.merging.Alignment(spec))


def test_progress_is_that_of_the_whole(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    merge(ALL, on_progress=lambda event: told.append((event.index, event.total)))
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({total for _, total in told}) == 1
