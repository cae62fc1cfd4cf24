"""The README is executed, so that it stays true."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.merging.recipe.parse import parse_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: title=\"[\w.]+\")?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(README) if found == language]


def run_command(line: str) -> None:
    """Run a command without leaving the process; its last line names the file that it wrote."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "weightspace", program
    result = CliRunner().invoke(cli.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, f"{arguments}: {result.output}"
    last = result.stdout.splitlines()[-1]
    assert "-o" not in arguments or "--dry-run" in arguments or Path(last).is_file(), (
        f"{arguments} names no file at the end: {last}"
    )


def test_all_blocks_run_in_their_order_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    names: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for language, block in BLOCK.findall(README):
            if language == "yaml":
                Path(re.findall(r'^```yaml title="(\S+)"', README, flags=re.MULTILINE)[0]).write_text(block)
            elif language == "python":
                exec(compile(block, "README.md", "exec"), names)
            elif language == "sh":
                for line in block.splitlines():
                    run_command(line)
    assert names["after"] < 0.1 * names["before"]
    assert set(names["predicted"]) <= set(names["metric"].labels)
    assert ws.load_checkpoint("merged")
    assert set(names["soup"].state) == set(ws.load_checkpoint("soup.safetensors")) == set(names["merged"])


def test_no_block_of_the_readme_is_left_out() -> None:
    # yaml, sh and python run above; bash is what CI runs.
    languages = [language for language, _ in BLOCK.findall(README)]
    assert set(languages) <= {"sh", "python", "yaml", "bash"}
    assert [languages.count(language) for language in ("yaml", "python", "sh", "bash")] == [1, 4, 2, 2]
    assert README.count("```") == 2 * len(languages)


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert 'pip install -e ".[all,dev]" && pytest' in README
    assert 'pip install -e ".[all,dev]" && pytest' in script
    assert 'pip install -e ".[demo]" && weightspace demo' in README
    assert 'pip install -e ".[docs]" && python docs/build_docs.py' in README


def test_every_command_is_in_the_readme() -> None:
    for name in cli.COMMANDS:
        assert f"weightspace {name}" in README or f"`{name}`" in README, name


def test_the_links_of_the_readme_lead_to_files() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (ROOT / link).is_file(), link


def test_no_page_counts_the_merge_methods() -> None:
    """A count would be out of date with the next method; the generated overview counts them."""
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs" / "pages").rglob("*.md")):
        assert not re.search(r"\d+ \[?merge methods", page.read_text()), page.name


def test_the_recipe_of_the_readme_is_one() -> None:
    assert parse_recipe(blocks("yaml")[0], "README.md").method == "ties"


def measured_rows() -> list[list[str]]:
    """Return the cells of the README's table of figures."""
    section = README.split("## What is measured")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"][
        2:
    ]


@pytest.mark.parametrize(("what", "figures"), measured_rows(), ids=lambda text: text[:30])
def test_every_figure_of_the_readme_is_in_a_table_of_the_measurements(what: str, figures: str) -> None:
    tables = "".join((ROOT / folder / "README.md").read_text() for folder in ("benchmarks", "analyses"))
    cells = {
        cell.strip(" ¹*") for line in tables.splitlines() if line[:1] == "|" for cell in line.strip("|").split("|")
    }
    numbers = re.findall(r"(?<![\w.])\.?\d[\d,]*(?:\.\d+)?(?= s\b| MB| ms| \()", figures)
    assert numbers, what
    for number in numbers:
        assert cells & {number, f"{number} s", f"{number} MB"}, f"{what}: {number}"
