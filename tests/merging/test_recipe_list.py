"""The list of recipes: every kind that mergekit's documentation and its users write is planned as it stands.

data/recipes/plain.yml, further.yml and tokens.yml have recipes without a warning, warned.yml and unknown.yml those in
which mergekit ignores something. They are our own variants. Models are tiny folders: ``base``, ``a``, ``b``, ``c`` with
an adapter ``lora``, ``vision/…`` and ``text/…``, and models of ``org`` in a cache of the Hub.
"""

import shutil
from pathlib import Path

import pytest
import yaml

from weightspace.merging import merge_files

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data" / "recipes"
CONFORMANCE = TESTS / "data" / "conformance"
PLAIN: dict[str, str] = {
    **yaml.safe_load((DATA / "plain.yml").read_text()),
    **yaml.safe_load((DATA / "further.yml").read_text()),
    **yaml.safe_load((DATA / "tokens.yml").read_text()),
}
WARNED: dict[str, str] = {
    name: entry["recipe"]
    for file in ("warned.yml", "unknown.yml")
    for name, entry in yaml.safe_load((DATA / file).read_text()).items()
}
INNER = "merge_method: linear\nmodels: [{model: b}, {model: c}]\nparameters: {weight: 1}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all models, and ``hub``, a cache of the Hub."""
    root = tmp_path_factory.mktemp("list")
    for name in ("base", "a", "b", "c"):
        shutil.copytree(CONFORMANCE / "recipes" / "inputs" / "fp32" / "llama" / name, root / name)
        (root / name / "tokenizer.json").write_text('{"model": {"vocab": {"x": 0, "y": 1}}}')
        (root / name / "tokenizer_config.json").write_text('{"chat_template": "{{ messages[0].content }}"}')
    shutil.copytree(CONFORMANCE / "recipes" / "inputs" / "fp32" / "llama" / "lora", root / "lora")
    shutil.copytree(CONFORMANCE / "recipes" / "inputs" / "fp32" / "gemma3", root / "vision")
    shutil.copytree(CONFORMANCE / "recipes" / "inputs" / "fp32" / "t5", root / "text")
    (root / "inner.yml").write_text(INNER)
    for number, (name, revision) in enumerate([("base", "main"), ("a", "main"), ("b", "v1"), ("lora", "main")]):
        home = root / "hub" / f"models--org--{name}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / revision).write_text(f"{number:040}")
        shutil.copytree(root / name, home / "snapshots" / f"{number:040}")
    return root


@pytest.fixture
def working(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.parametrize("recipe", [*PLAIN, *WARNED])
def test_every_recipe_is_planned_as_it_stands(recipe: str, working: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(PLAIN.get(recipe) or WARNED[recipe])
    report = merge_files(tmp_path / "recipe.yml", tmp_path / "out", dry_run=True)
    assert report.tensors
    lines = [line for line in report.warnings if "chat_template uses" not in line]  # the tokenizers have two tokens
    assert bool(lines) == (recipe in WARNED), lines


def test_there_are_two_hundred() -> None:
    assert len({*PLAIN, *WARNED}) >= 200
    texts = [*PLAIN.values(), *WARNED.values()]
    assert len(set(texts)) == len(texts)
