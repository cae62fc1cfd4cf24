"""Code that a file or a recipe names: run only where the user says so, and never by a dry run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import load_metadata
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import merge_files, reproduce
from weightspace.merging.methods._unrun import UnrunMethod, unrun_method
from weightspace.networks import load_network
from weightspace.user_code import load_object, running_no_code

#: A method that leaves a mark when it is loaded.
MARKING = """
import pathlib
pathlib.Path("ran").touch()

def mean(tensors, weights, base, *, power=1.0, mode="plain", sharp=False, steps=3):
    return sum(w * t for w, t in zip(weights, tensors)) / sum(weights) ** power

class Methods:
    def small(tensors, weights, base, *, scale=0.5):
        return scale * tensors[0]
    @staticmethod
    def static(tensors, weights, base, *, scale=0.5):
        return scale * tensors[0]

made = lambda tensors, weights, base: tensors[0]
THRESHOLD = 0.5
def computed(tensors, weights, base, *, threshold=THRESHOLD):
    return tensors[0]
def two(tensors, weights):
    return tensors[0]
def bare(tensors, weights, base, *, power):
    return tensors[0]
if power_is_needed := True:
    def conditional(tensors, weights, base):
        return tensors[0]
from os import path as imported
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        generator = torch.Generator().manual_seed(seed)
        ws.save_checkpoint({"w": torch.randn(5, 3, generator=generator)}, name)
    Path("mine.py").write_text(MARKING)


def run(command: str) -> Result:
    return CliRunner().invoke(cli.main, command.split())


def ran() -> bool:
    there = Path("ran").exists()
    Path("ran").unlink(missing_ok=True)
    return there


def write_recipe(method: str, parameters: str = "{}") -> None:
    models = "models:\n- {model: a}\n- {model: b}\n"
    Path("r.yml").write_text(f"merge_method: {method}\n{models}parameters: {parameters}\n")


DRY = {
    "a method of the command line": "merge a b -m mine.py:mean -o out --dry-run",
    "a method of a recipe": "merge r.yml -o out --dry-run",
    "a task": "merge a b -o out --dry-run --task mine.py:task",
    "a network": "merge a b -o out --dry-run --align weight-matching --network mine.py:build --input 2,3",
}


@pytest.mark.parametrize("command", DRY.values(), ids=DRY)
def test_a_dry_run_runs_nobodys_code_and_says_so(command: str) -> None:
    write_recipe("mine.py:mean")
    result = run(command)
    assert result.exit_code == 0, result.output
    assert not ran()
    assert "was not loaded: a dry run runs no custom code" in result.output
    assert json.loads(run(f"{command} --json").stdout)["warnings"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{powr: 2}", "powr"),
        ("{mode: 3}", "mode must be a string"),
        ("{steps: .5}", "'steps' must be an integer"),
        ("{sharp: 2}", "sharp must be true or false"),
    ],
)
def test_a_dry_run_checks_parameters_by_the_source(parameters: str, message: str) -> None:
    write_recipe("mine.py:mean", parameters)
    with pytest.raises(WeightspaceError, match=message) as dry:
        merge_files("r.yml", "out", dry_run=True)
    assert not ran()
    with pytest.raises(WeightspaceError) as real:
        merge_files("r.yml", "out")
    assert str(dry.value) == str(real.value)


def test_a_merge_does_as_its_dry_run_planned() -> None:
    planned = merge_files(["a", "b"], "out", method="mine.py:mean", parameters={"power": 2.0}, dry_run=True)
    assert not ran()
    done = merge_files(["a", "b"], "out", method="mine.py:mean", parameters={"power": 2.0})
    assert ran()
    assert (planned.files, planned.tensors, planned.written_bytes) == (done.files, done.tensors, done.written_bytes)


@pytest.mark.parametrize("name", ["made", "computed", "conditional", "imported", "Methods.static", "made.anything"])
def test_a_method_that_only_running_would_show_takes_any_parameters(name: str) -> None:
    method = unrun_method(f"mine.py:{name}")
    assert not method.known
    assert method.arguments({"anything": 1}, 2) == {"anything": 1}
    assert "its parameters are not checked" in method.note


def test_parameters_are_read_with_their_types() -> None:
    assert [(p.name, p.default) for p in unrun_method("mine.py:mean").parameters] == [
        ("power", 1.0),
        ("mode", "plain"),
        ("sharp", False),
        ("steps", 3),
    ]
    assert [p.name for p in unrun_method("mine.py:Methods.small").parameters] == ["scale"]


SOURCES = {
    "nowhere.py:mean": "There is no file nowhere.py",
    "mine.py:meam": "Unknown object in mine.py 'meam'.*Did you mean 'mean'",
    "mine.py:Methods.smal": "Unknown object in mine.py 'smal'.*'small'",
    "mine.py:two": r"must be a function \(tensors, weights, base, \*, …\).*\(tensors, weights\)",
    "mine.py:bare": "parameter 'power' needs a default",
    "broken.py:mean": "broken.py:2 isn't valid Python",
    "nul.py:mean": "nul.py isn't valid Python",
    "pipe.py:mean": "There is no file pipe.py",
    "folder.py:mean": "There is no file folder.py",
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_no_method_is_one_line(source: str) -> None:
    Path("broken.py").write_text("x = 1\ndef mean(:\n")
    Path("nul.py").write_bytes(b"x = 1\0\n")
    Path("folder.py").mkdir()
    os.mkfifo("pipe.py")
    with pytest.raises(WeightspaceError, match=SOURCES[source]):
        merge_files(["a", "b"], "out", method=source, dry_run=True)
    assert not ran()


def test_a_method_of_a_file_with_a_star_may_be_anywhere() -> None:
    Path("star.py").write_text("from mine import *\n")
    assert isinstance(unrun_method("star.py:mean"), UnrunMethod)


def test_nothing_is_loaded_where_no_code_may_run() -> None:
    with running_no_code(), pytest.raises(WeightspaceError, match=r"mine.py:mean would have to be run"):
        load_object("mine.py:mean")
    assert not ran()
    assert callable(load_object("mine.py:mean"))


@pytest.mark.parametrize("out", ["out", "out.safetensors", "out.pt"])
def test_reproducing_runs_code_only_where_that_is_allowed(out: str) -> None:
    merge_files(["a", "b"], out, method="mine.py:mean")
    ran()
    with pytest.raises(WeightspaceError, match=r"made by the code 'mine.py:mean', which would be run.*--allow-code"):
        reproduce(out)
    result = run(f"merge --reproduce {out}")
    assert (result.exit_code, ran()) == (2, False)
    assert "--allow-code" in result.output
    result = run(f"merge --reproduce {out} --allow-code")
    assert (result.exit_code, ran()) == (0, True)
    assert reproduce(out, allow_code=True).equal


def test_a_merge_without_code_is_reproduced_without_being_allowed_any() -> None:
    merge_files(["a", "b"], "out")
    assert run("merge --reproduce out").exit_code == 0


def test_allow_code_is_for_reproducing() -> None:
    result = run("merge a b -o out --allow-code")
    assert result.exit_code == 2
    assert "--allow-code is for --reproduce" in result.output


def spoiled(change: Callable[[dict[str, str]], object]) -> None:
    """Write ``out`` whose metadata were changed by somebody."""
    merge_files(["a", "b"], "out.safetensors")
    metadata = load_metadata("out.safetensors")
    metadata.pop("format")
    change(metadata)
    ws.save_checkpoint(ws.load_checkpoint("out.safetensors"), "out.safetensors", metadata=metadata)


SPOILED: dict[str, Callable[[dict[str, str]], object]] = {
    "code in the place of a method": lambda metadata: metadata.update(
        recipe=metadata["recipe"].replace("linear", "mine.py:mean"), method="mine.py:mean"
    ),
    "code only in the recipe": lambda metadata: metadata.update(
        recipe=metadata["recipe"].replace("linear", "./mine.py:Methods.static")
    ),
    "a task": lambda metadata: metadata.update(parameters='{"task": "mine.py:task", "statistics": "reset"}'),
    "an alignment": lambda metadata: metadata.update(
        parameters='{"shard_size": 5, "align": "weight-matching", "align_task": "mine.py:task"}'
    ),
    "no parameters": lambda metadata: metadata.pop("parameters"),
    "parameters that are no object": lambda metadata: metadata.update(parameters="[]"),
    "deep parameters": lambda metadata: metadata.update(parameters="[" * 100_000),
    "a shard size of text": lambda metadata: metadata.update(parameters='{"shard_size": "5GB"}'),
    "a negative shard size": lambda metadata: metadata.update(parameters='{"shard_size": -1}'),
    "a key that is a number": lambda metadata: metadata.update(parameters='{"shard_size": 5, "key": 3}'),
    "a prefix that is a list": lambda metadata: metadata.update(parameters='{"shard_size": 5, "strip_prefix": []}'),
    "lenience of text": lambda metadata: metadata.update(parameters='{"shard_size": 5, "lenient": "yes"}'),
    "no inputs": lambda metadata: metadata.pop("inputs"),
    "inputs without digests": lambda metadata: metadata.update(inputs='[{"name": "a"}]'),
    "no recipe at all": lambda metadata: metadata.update(recipe="[]"),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED)
def test_no_metadata_can_run_code_and_one_line_says_why(change: Callable[[dict[str, str]], object]) -> None:
    spoiled(change)
    result = run("merge --reproduce out.safetensors")
    assert result.exit_code == 2, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    assert len(line) < 500
    assert not ran()
    assert sorted(path.name for path in Path().glob("*out*")) == ["out.safetensors"]
    assert not list(Path().glob(".*"))


def test_damaged_metadata_are_distinguished_from_a_mistake_of_the_user() -> None:
    spoiled(lambda metadata: metadata.update(parameters="{"))
    with pytest.raises(CheckpointError, match="the metadata of the merge is damaged"):
        reproduce("out.safetensors")


@pytest.mark.parametrize("architecture", ["pipeline", "is_torch_available", "AutoModelForCausalLM", 3, None])
def test_an_architecture_that_is_no_network_of_transformers_is_not_called(architecture: object) -> None:
    pytest.importorskip("transformers")
    Path("net").mkdir()
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "bert", "vocab_size": 20, "architectures": [architecture], **sizes}
    Path("net/config.json").write_text(json.dumps(config))
    network = load_network("transformers:net")
    assert type(network.module).__name__ == "BertModel"


def test_code_beside_a_configuration_is_not_run() -> None:
    pytest.importorskip("transformers")
    Path("net").mkdir()
    Path("net/modeling.py").write_text(MARKING)
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}}
    Path("net/config.json").write_text(json.dumps(config))
    with pytest.raises(WeightspaceError, match="transformers:net cannot be built"):
        load_network("transformers:net")
    assert not ran()
