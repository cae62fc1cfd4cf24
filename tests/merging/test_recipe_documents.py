"""Several recipes in one file: which is the output, in what order they are merged, and what is refused."""

import pytest

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.parse import Recipe, parse_recipe
from weightspace.merging.recipe.several import used_documents


def document(name: str | None, *models: str, base: str | None = None, tokenizer: str | None = None) -> str:
    lines = [] if name is None else [f"name: {name}"]
    lines += ["merge_method: linear", "parameters: {weight: 1}", "models:", *(f"- model: {one}" for one in models)]
    lines += [f"base_model: {base}"] if base else []
    lines += [f"tokenizer_source: {tokenizer}"] if tokenizer else []
    return "\n".join(lines)


def read(*documents: str) -> Recipe:
    return parse_recipe("\n---\n".join(documents), "r.yml", ignored=lambda line: None)


def names(recipe: Recipe) -> list[str | None]:
    return [one.name for one in recipe.documents]


def test_the_last_document_is_the_output_where_all_have_names() -> None:
    recipe = read(document("x", "a", "b"), document("y", "x", "c"))
    assert (recipe.name, names(recipe)) == ("y", ["x"])


def test_the_document_without_a_name_is_the_output_at_any_position() -> None:
    recipe = read(document(None, "x", "y"), document("x", "y"), document("y", "a"))
    assert (recipe.name, names(recipe)) == (None, ["y", "x"])


@pytest.mark.parametrize(
    "final",
    [
        document(None, "x", "a"),
        document(None, "a", base="x"),
        document(None, "a", tokenizer="x"),
        document(None, "x+adapter", "a"),
        document(None, "{model: {path: x}, lora: adapter}", "a"),
    ],
)
def test_models_bases_tokenizers_and_models_of_adapters_can_be_documents(final: str) -> None:
    assert [one.name for one in used_documents(read(document("x", "b"), document("z", "b"), final))] == ["x"]


def test_documents_that_the_output_needs_indirectly_are_used() -> None:
    recipe = read(document("x", "a"), document("y", "x"), document("z", "a"), document("w", "z"), document(None, "y"))
    assert [one.name for one in used_documents(recipe)] == ["x", "y"]


def test_empty_documents_are_no_documents() -> None:
    recipe = parse_recipe(f"---\n{document('x', 'a')}\n---\n---\n", "r.yml")
    assert (recipe.name, recipe.documents) == ("x", ())


def test_a_name_in_a_file_of_one_document_is_no_model() -> None:
    recipe = read(document("a", "a", "b"))
    assert [source.model for source in recipe.slices[0].sources] == ["a", "b"]
    assert recipe.documents == ()


def test_documents_come_back_from_their_own_text() -> None:
    recipe = read(document("x", "a"), document(None, "x", "y"), document("y", "x"))
    assert parse_recipe(recipe.to_yaml(), "r.yml") == recipe


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([document(None, "a"), document(None, "b")], "2 of 2 documents have no name"),
        ([document("x", "a"), document("x", "b")], "two documents are named 'x'"),
        ([document("x", "y"), document("y", "x")], "a document uses its own result as a model: (x → y → x|y → x → y)"),
        ([document("x", "x"), document(None, "x")], "a document uses its own result as a model: x → x"),
        ([document("x", "a"), "merge_method: linear"], "r.yml, document 2: the recipe must have exactly one of"),
        ([document("x", "a"), document(None, "a").replace("weight", "wieght")], "document 2: .*wieght"),
        ([document("x", "a"), "just text"], "document 2: the recipe must be a mapping"),
    ],
)
def test_documents_that_make_no_sense_are_refused_in_one_line(documents: list[str], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message) as error:
        read(*documents)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_long_chain_of_documents_is_ordered() -> None:
    count = 1500
    chain = [document(f"d{i}", f"d{i + 1}" if i < count - 1 else "a") for i in range(count)]
    recipe = read(*chain, document(None, "d0"))
    assert names(recipe) == [f"d{i}" for i in reversed(range(count))]
    assert len(used_documents(recipe)) == count


def test_a_long_circle_of_documents_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="uses its own result") as error:
        read(*(document(f"d{i}", f"d{(i + 1) % 1500}") for i in range(1500)))
    assert len(str(error.value)) < 500
