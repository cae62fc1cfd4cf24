"""Tables with a header, rows that are no probabilities, and columns that are named otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli
from weightspace.labels.inputs import read_array, read_labels, read_pairs

EDGES = "animal,cat\nanimal,dog\nentity,animal\nentity,car\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["labels", *arguments])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder with a tree."""
    monkeypatch.chdir(tmp_path)
    Path("edges.csv").write_text(EDGES)
    assert run("build", "--edges", "edges.csv", "-o", "tree.safetensors").exit_code == 0


@pytest.mark.parametrize("head", ["source,target", "from,to", "u,v", "Class,Superclass"])
def test_a_header_of_edges_is_skipped_with_a_warning(head: str) -> None:
    Path("headed.csv").write_text(f"{head}\n{EDGES}")
    result = run("build", "--edges", "headed.csv", "-o", "headed.safetensors")
    assert result.exit_code == 0, result.output
    assert f"headed.csv: line 1 looks like a header ({head}): skipped" in result.stderr
    assert ws.LabelMetric.load("headed.safetensors").labels == ws.LabelMetric.load("tree.safetensors").labels
    kept = run("build", "--edges", "headed.csv", "--no-header", "-o", "kept.safetensors")
    assert kept.exit_code == 2  # two trees
    assert "2 components" in kept.stderr
    assert run("build", "--edges", "headed.csv", "--header", "-o", "h.safetensors").stderr == ""


@pytest.mark.parametrize("head", ["name,parent", "child,parent", "parent,child", "Parent, Child"])
def test_a_documented_header_is_skipped_silently(head: str) -> None:
    Path("headed.csv").write_text(f"{head}\n{EDGES}")
    for option in ("--edges", "--parents"):
        result = run("build", option, "headed.csv", "-o", "headed.safetensors")
        assert (result.exit_code, result.stderr) == (0, "")
        headed, tree = (set(ws.LabelMetric.load(f"{name}.safetensors").labels) for name in ("headed", "tree"))
        assert headed == tree


def test_a_third_column_that_is_named_makes_a_header() -> None:
    Path("lengths.csv").write_text("a,b,metres\nx,y,2\ny,z,3\n")
    with pytest.warns(ws.WeightspaceWarning, match="line 1 looks like a header"):
        assert read_pairs("lengths.csv") == [("x", "y", 2.0), ("y", "z", 3.0)]
    Path("broken.csv").write_text("x,y,2\ny,z,far\n")
    with pytest.raises(ws.WeightspaceError, match="line 2"):
        read_pairs("broken.csv")


@pytest.mark.parametrize(
    "content", ["parent,child\n", "parent,child\nroot,parent\n", "cat,animal\ndog,animal\n", "class,cat\nclass,dog\n"]
)
def test_names_that_are_labels_are_no_header(content: str) -> None:
    Path("plain.csv").write_text(content)
    assert len(read_pairs("plain.csv")) == len(content.splitlines())


@pytest.mark.parametrize("first", ["a,ba,", "a,ba, ", "b,c,", "a,b,x", "b,x,y", "a,,x", ",a,x"])
def test_a_first_edge_whose_length_is_missing_or_damaged_is_no_header(first: str) -> None:
    Path("pairs.csv").write_text(f"{first}\nb,c,1.5\n")
    with pytest.raises(ws.WeightspaceError, match=r"pairs\.csv.*1"):
        read_pairs("pairs.csv")


@pytest.mark.parametrize("first", [",,", " , ,"])
def test_a_first_line_of_empty_cells_is_no_header_of_numbers(first: str) -> None:
    Path("p.csv").write_text(f"{first}\n1,2,3\n4,5,6\n")
    with pytest.raises(ws.WeightspaceError, match=r"p\.csv"):
        read_array("p.csv")


def test_parents_with_a_header_a_root_and_several_parents() -> None:
    Path("parents.csv").write_text("name,parent\nentity,\ncat,animal\ndog,animal\nanimal,entity\ncar,entity\n")
    assert run("build", "--parents", "parents.csv", "-o", "p.safetensors").exit_code == 0
    metric = ws.LabelMetric.load("p.safetensors")
    assert metric.root == "entity"
    assert metric.distances(["cat"], ["car"]).tolist() == [[3]]
    Path("several.csv").write_text("child,parent\ncat,animal\ncat,pet\nanimal,entity\npet,entity\n")
    assert run("build", "--parents", "several.csv", "-o", "s.safetensors").exit_code == 0
    assert ws.LabelMetric.load("s.safetensors").distances(["pet"], ["animal"]).tolist() == [[2]]
    Path("lengths.csv").write_text("cat,animal,2\ncat,pet,1\nanimal,entity,1\npet,entity,1\n")
    assert run("build", "--parents", "lengths.csv", "-o", "l.safetensors").exit_code == 0
    assert ws.LabelMetric.load("l.safetensors").distances(["cat"], ["entity"]).tolist() == [[2]]


SCORES = "0.9,0.1,0.0\n0.5,0.5,0.0\n"
PREDICT = ("predict", "tree.safetensors")


def test_a_header_of_numbers_is_skipped_with_a_warning() -> None:
    Path("scores.csv").write_text(f"dog,cat,car\n{SCORES}")
    result = run(*PREDICT, "scores.csv", "--observed", "dog,cat,car", "--json")
    assert result.exit_code == 0, result.output
    assert "scores.csv: line 1 looks like a header (dog,cat,car): skipped" in result.stderr
    assert json.loads(result.stdout)["names"][0] == "dog"
    assert run(*PREDICT, "scores.csv", "--observed", "dog,cat,car", "--header", "--json").stdout == result.stdout
    np.testing.assert_array_equal(read_array("scores.csv", header=True), [[0.9, 0.1, 0], [0.5, 0.5, 0]])
    refused = run(*PREDICT, "scores.csv", "--observed", "dog,cat,car", "--no-header")
    assert refused.exit_code == 2
    assert "isn't a .csv file of numbers" in refused.stderr


def test_columns_in_another_order_than_the_classes_are_refused() -> None:
    Path("scores.csv").write_text(f"dog,cat,car\n{SCORES}")
    result = run(*PREDICT, "scores.csv", "--observed", "cat,dog,car")
    assert result.exit_code == 2
    assert "the columns are dog, cat, car, but the observed classes are cat, dog, car" in result.stderr
    Path("scores.csv").write_text(f"p0,p1,p2\n{SCORES}")
    assert run(*PREDICT, "scores.csv", "--observed", "cat,dog,car").exit_code == 0


def test_a_header_that_is_part_of_numbers_is_refused() -> None:
    Path("scores.csv").write_text(f",0,1\n{SCORES}")
    result = run(*PREDICT, "scores.csv", "--observed", "dog,cat,car")
    assert result.exit_code == 2


def test_rows_that_do_not_sum_to_one_are_reported() -> None:
    Path("scores.csv").write_text("0.9,0.1,0.0\n3,1,0.5\n")
    result = run(*PREDICT, "scores.csv", "--observed", "dog,cat,car", "--json")
    assert result.exit_code == 0
    assert "1 of 2 rows do not sum to one (row 1: 4.5)" in result.stderr
    Path("good.csv").write_text(SCORES)
    assert run(*PREDICT, "good.csv", "--observed", "dog,cat,car", "--json").stderr == ""
    np.save("half.npy", np.full((4, 3), 1 / 3, dtype=np.float16))
    assert run(*PREDICT, "half.npy", "--observed", "dog,cat,car", "--json").stderr == ""
    Path("truth.txt").write_text("dog\ncat\n")
    evaluated = run("evaluate", "tree.safetensors", "scores.csv", "--observed", "dog,cat,car", "--truth", "truth.txt")
    assert evaluated.stderr.count("do not sum to one") == 1
    assert "--logits" in evaluated.stderr


def test_a_header_of_names_is_skipped_where_it_is_no_label() -> None:
    Path("classes.csv").write_text("label\ncat\ndog\n")
    with pytest.warns(ws.WeightspaceWarning, match=r"classes.csv: line 1 looks like a header \(label\)"):
        assert read_labels("classes.csv", ["cat", "dog"]) == ["cat", "dog"]
    assert read_labels("classes.csv", ["cat", "dog", "label"]) == ["label", "cat", "dog"]


def test_numbers_compared_with_text_are_reported() -> None:
    text, number = ws.LabelMetric.discrete(["0", "1"]), ws.LabelMetric.discrete([0, 1])
    with pytest.raises(ws.WeightspaceError, match="Unknown label 0, of type int; the metric has '0', of type str"):
        text.predict([[0.5, 0.5]], observed=[0, 1])
    with pytest.raises(ws.WeightspaceError, match="Unknown label '1', of type str; the metric has 1, of type int"):
        number.predict([[0.5, 0.5]], observed=["1", "0"])
    with pytest.raises(ws.WeightspaceError, match="of type int; the metric has '1', of type str"):
        text.distances([np.int64(1)])
    with pytest.raises(ws.WeightspaceError, match="Unknown label 'cat'"):
        number.distances(["cat"])


def test_with_a_file_a_summary_is_printed() -> None:
    np.save("p.npy", np.tile([[0.9, 0.1, 0.0]], (300, 1)))
    result = run(*PREDICT, "p.npy", "--observed", "dog,cat,car", "-o", "out.csv")
    assert result.stdout.splitlines()[0].startswith("300 rows, 1 of 5 labels predicted; mean expected cost 0.4")
    assert result.stdout.splitlines()[1:] == ["most frequent: dog 100.0%", "out.csv"]
    assert len(Path("out.csv").read_text().splitlines()) == 301
    assert len(run(*PREDICT, "p.npy", "--observed", "dog,cat,car").stdout.splitlines()) == 301


@pytest.mark.parametrize("source", ["edges", "graph", "parents"])
@pytest.mark.parametrize("row", ["a,", ",a", "a,  ", "a,,2", ",a,2", ", "])
def test_an_empty_name_in_a_table_is_refused_with_its_line(source: str, row: str) -> None:
    Path("blank.csv").write_text(f"parent,child\na,b\n{row}\n")
    result = run("build", f"--{source}", "blank.csv", "-o", "blank.safetensors")
    if source == "parents" and row.startswith(",a"):  # the first column is the parent: a is a root
        assert result.exit_code == 0
        assert "" not in ws.LabelMetric.load("blank.safetensors").labels
        return
    assert result.exit_code == 2
    assert f"blank.csv, line 3: found {row!r}, with an empty name; expected two names" in result.stderr
    assert ("parent of a root may be empty" in result.stderr) == (source == "parents")
    assert not Path("blank.safetensors").exists()


@pytest.mark.parametrize("name", ["", "  "])
def test_a_blank_name_in_a_list_of_json_is_refused_with_its_position(name: str) -> None:
    Path("names.json").write_text(json.dumps(["a", name, "b"]))
    result = run("build", "--discrete", "names.json", "-o", "blank.safetensors")
    assert result.exit_code == 2
    assert f"names.json: the name at position 1 is {name!r}; expected a label" in result.stderr


@pytest.mark.parametrize("command", ["predict edges.csv edges.csv", "locus edges.csv"])
def test_a_table_in_place_of_a_metric_is_told_what_builds_one(command: str) -> None:
    result = run(*command.split(), "--observed", "cat,dog")
    assert result.exit_code == 2
    assert "edges.csv isn't a label metric" in result.stderr
    assert "weightspace labels build --edges FILE" in result.stderr


def test_edges_with_a_cycle_are_told_of_graphs() -> None:
    Path("cycle.csv").write_text("a,b\nb,c\nc,a\n")
    assert "Use from_graph (labels build --graph)" in run("build", "--edges", "cycle.csv", "-o", "m.safetensors").stderr
