"""The README is executed, so that it stays true."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from weightspace import cli
from weightspace.matching.methods import MANY_MATCHINGS, MATCHINGS
from weightspace.merging import METHODS
from weightspace.merging.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_block_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["after"] < 0.1 * names["before"]  # type: ignore[operator]
    assert (tmp_path / "way.png").stat().st_size > 10_000


def test_the_command_lines_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("weightspace ")]
    assert len(lines) >= 4
    for line in lines:
        arguments = line.split("#")[0].split()[1:]
        if arguments[0] == "train":  # the point is the command, not the network
            arguments += ["--epochs", "1"]
        result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}: {result.output}"


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
