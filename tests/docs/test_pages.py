"""The code of the pages is executed as a reader would: the blocks of a page in order, in an empty folder."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import gguf_models
import pytest
import torch
from click.testing import CliRunner
from generators import matching_methods, merge_methods, reference

import weightspace as ws
from weightspace import cli
from weightspace.matching import MANY_MATCHINGS, MATCHINGS
from weightspace.merging.recipe.parse import parse_recipe

PAGES = Path(__file__).parents[2] / "docs" / "pages"
#: A block with its language and, where the page gives one, the file that it is.
BLOCK = re.compile(r"^```(python|sh|yaml)(?: title=\"([\w.]+)\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(text: str, name: str, given: dict[str, object] | None = None) -> dict[str, object]:
    """Run the Python of a page, parse its recipes, write its named files, and run its commands in this process."""
    names: dict[str, object] = {"__name__": "__main__", **(given or {})}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for language, file, block in BLOCK.findall(text):
            if language == "yaml":
                if "merge_method:" in block and "{search:" not in block:
                    parse_recipe(block, name)
                if file:
                    Path(file).write_text(block)
                continue
            if language == "python":
                exec(compile(block, name, "exec"), names)
                continue
            for line in block.splitlines():
                arguments = shlex.split(line, comments=True)
                assert arguments[0] == "weightspace", line
                result = CliRunner().invoke(cli.main, arguments[1:], catch_exceptions=False)
                assert result.exit_code == 0, f"{line}: {result.output}"
    return names


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))


def open_clip_model() -> dict[str, object]:
    """Return a CLIP of a few thousand weights with a tokenizer and images, which a page speaks of."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "clip": open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text),
            "tokenizer": lambda texts: torch.tensor([[len(text) + i for i in range(8)] for text in texts]),
            "images": torch.randn(5, 3, 32, 32),
        }


def gguf_file_and_folders() -> dict[str, object]:
    """Write a GGUF file and folders of one family, which a page merges."""
    state = gguf_models.folder(Path("tuned"), "llama", 1)
    gguf_models.folder(Path("other"), "llama", 2)
    gguf_models.write_gguf(Path("base-Q4_0.gguf"), state, "llama", "Q4_0")
    return {}


#: Page -> what its reader has already.
GIVEN: dict[str, Callable[[], dict[str, object]]] = {
    "how-to/labels.md": open_clip_model,
    "how-to/gguf.md": gguf_file_and_folders,
}
WITH_CODE = [path for path in sorted(PAGES.rglob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: str(path.relative_to(PAGES)))
def test_the_code_of_a_page_runs(path: Path) -> None:
    given = GIVEN.get(path.relative_to(PAGES).as_posix(), dict)()
    run(path.read_text(encoding="utf-8"), str(path), given)


def test_no_block_of_the_pages_has_an_unknown_language() -> None:
    # python and sh run, yaml is parsed; bash and text need a download, a reader's own files or hours, or are output.
    for path in sorted(PAGES.rglob("*.md")):
        languages = set(re.findall(r"^```(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert languages <= {"python", "sh", "yaml", "bash", "text"}, path


@pytest.mark.parametrize("name", ws.METHODS)
def test_the_example_of_a_merge_method_runs(name: str) -> None:
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(merge_methods.example(ws.METHODS[name]), names)
    merged = names["merged"]
    assert isinstance(merged, dict)
    assert merged["layer.weight"].shape == (8, 16)


@pytest.mark.parametrize("row", [*MATCHINGS.values(), *MANY_MATCHINGS.values()], ids=lambda row: row.name)
def test_the_example_of_a_matching_method_runs(row: object) -> None:
    exec(matching_methods.example(row, several=row in MANY_MATCHINGS.values()), {})


@pytest.mark.parametrize("name", reference.DATA)
def test_the_example_of_a_name_without_docstring_runs(name: str) -> None:
    run(reference.DATA[name], name)


@pytest.mark.parametrize("name", ws.METHODS)
def test_the_recipe_of_a_merge_method_is_one(name: str) -> None:
    recipe = parse_recipe(merge_methods.recipe(ws.METHODS[name]), name)
    assert recipe.method == name
