"""The README is executed, so that it stays true."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.matching.registry import MANY_MATCHINGS, MATCHINGS
from weightspace.merging import METHODS
from weightspace.merging.recipe.parse import parse_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_block_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    block = blocks("python")[0]
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["after"] < 0.1 * names["before"]  # type: ignore[operator]
    assert (tmp_path / "way.png").stat().st_size > 10_000


def test_the_task_is_one_that_commands_take() -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), names)
    state = ws.train(names["task"], seed=0, epochs=1)
    assert set(state) == {"weight", "bias"}


def test_the_heads_take_the_place_of_argmax_in_three_lines() -> None:
    from sklearn.linear_model import LogisticRegression

    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip_model()
        given = {
            "network": torch.nn.Linear(4, 3),
            "inputs": torch.randn(5, 4),
            "X": torch.randn(30, 4).numpy(),
            "y": ["cat", "dog", "car"] * 10,
            "LogisticRegression": LogisticRegression,
            "clip": clip,
            "images": torch.randn(5, 3, 32, 32),
            "tokenizer": lambda texts: torch.tensor([[len(text) + i for i in range(8)] for text in texts]),
            "torch": torch,
            "ws": ws,
        }
    three = blocks("python")[2:]
    assert len(three) == 3
    for block in three:
        assert len(block.splitlines()) == 3
        exec(compile(block, "README.md", "exec"), given)
        labels = set(given["metric"].labels)  # type: ignore[attr-defined]
        assert set(given["predicted"]) <= labels


def open_clip_model() -> torch.nn.Module:
    """Return a CLIP of a few thousand weights."""
    import open_clip

    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=8, vision_cfg=vision, text_cfg=text)


def test_every_sh_block_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    Path("docs").symlink_to(ROOT / "docs")  # the commands are those of somebody in the repository
    Path("recipe.yml").write_text(blocks("yaml")[0])
    for seed, model in enumerate(("base", "math", "code")):
        generator = torch.Generator().manual_seed(seed)
        names = [f"layers.{layer}.{part}.weight" for layer in range(4) for part in ("attention", "mlp")]
        ws.save_checkpoint({name: torch.randn(8, 8, generator=generator) for name in names}, model)
    lines = [line.split("#")[0].split() for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(lines) > 20
    for program, *arguments in lines:
        assert program == "weightspace", program
        if arguments[0] == "train":  # the point is the command, not the network
            arguments += ["--epochs", "1"]
        result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        last = result.stdout.splitlines()[-1]
        assert "-o" not in arguments or "--dry-run" in arguments or Path(last).is_file(), (
            f"{arguments} names no file at the end: {last}"
        )


def test_no_block_of_the_readme_is_left_out() -> None:
    # sh and python run above, yaml is parsed below, bash is what CI runs; text is output, or needs a download or hours.
    languages = set(re.findall(r"^```(\w*)$", README, flags=re.MULTILINE)) - {""}
    assert languages <= {"sh", "python", "yaml", "bash", "text"}
    assert len(blocks("python")) == 5


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[all,dev]" && pytest' in README
    assert 'pip install -e ".[all,dev]" && pytest' in script
    assert 'pip install -e ".[demo]" && weightspace demo' in README


def test_every_command_is_in_the_readme() -> None:
    for name in cli.COMMANDS:
        assert f"weightspace {name}" in README, name


def test_every_method_of_merging_is_in_the_readme_as_the_table_has_it() -> None:
    for row in METHODS.values():
        assert f"| `{row.name}`" in README, row.name
        assert row.formula.replace("|", r"\|") in README, row.name


def test_every_method_of_matching_is_in_the_readme_as_the_tables_have_it() -> None:
    for row in [*MATCHINGS.values(), *MANY_MATCHINGS.values()]:
        assert f"| `{row.name}` | {row.summary} |" in README, row.name


def test_the_recipe_of_the_readme_is_one() -> None:
    recipe = parse_recipe(next(block for block in blocks("yaml") if "merge_method" in block), "README.md")
    assert recipe.method == "ties"
