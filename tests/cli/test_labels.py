"""``weightspace labels`` from files to tables, JSON, files and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import weightspace as ws
from weightspace import cli

EDGES = "animal,cat\nanimal,dog\nthing,car\nentity,animal\nentity,thing\n"
CLASSES = ["dog", "cat", "car"]
P = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.4, 0.3, 0.3]]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["labels", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory with a metric, probabilities, logits and names."""
    monkeypatch.chdir(tmp_path)
    Path("edges.csv").write_text(EDGES)
    Path("classes.txt").write_text("\n".join(CLASSES) + "\n")
    Path("truth.txt").write_text("dog\nanimal\nentity\n")
    np.save("p.npy", np.asarray(P))
    np.save("logits.npy", np.log(np.asarray(P) + 1e-9))
    np.savez("two.npz", a=np.asarray(P), b=np.zeros(3))
    assert run("build", "--edges", "edges.csv", "-o", "tree.safetensors").exit_code == 0
    return tmp_path


def test_predictions_are_those_of_the_library(folder: Path) -> None:
    metric = ws.LabelMetric.load("tree.safetensors")
    expected = metric.predict(np.asarray(P), observed=CLASSES)
    result = run("predict", "tree.safetensors", "p.npy", "--observed", "classes.txt", "--json", "-o", "out.csv")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["ids"] == expected.tolist()
    assert found["names"] == [metric.labels[i] for i in expected]
    costs = metric.expected_cost(np.asarray(P), observed=CLASSES)
    np.testing.assert_allclose(found["expected_cost"], costs.min(1))
    rows = Path("out.csv").read_text().splitlines()
    assert rows[0] == "row,id,label,expected_cost"
    assert [row.split(",")[2] for row in rows[1:]] == found["names"]
    again = run("predict", "tree.safetensors", "logits.npy", "--logits", "--observed", "dog,cat,car", "-o", "ids.npy")
    mean = np.mean(found["expected_cost"])
    assert again.stdout.splitlines() == [
        f"3 rows, {len(set(found['names']))} of 6 labels predicted; mean expected cost {mean:.4g}",
        "most frequent: animal 66.7%, dog 33.3%",
        "ids.npy",
    ]
    np.testing.assert_array_equal(np.load("ids.npy"), expected)
    torch_file = run("predict", "tree.safetensors", "two.npz", "--key", "a", "--observed", "classes.txt")
    assert [line.split()[2] for line in torch_file.stdout.splitlines()[1:]] == found["names"]


def test_evaluation_puts_the_decisions_side_by_side(folder: Path) -> None:
    arguments = ("evaluate", "tree.safetensors", "logits.npy", "--logits", "--observed", "classes.txt")
    result = run(*arguments, "--truth", "truth.txt", "-o", "calibration.png")
    assert result.exit_code == 0, result.output
    assert [line.split("  ")[0] for line in result.stdout.splitlines()[:4]] == [
        "decision",
        "argmax",
        "Fréchet mean",
        "always animal",
    ]
    assert Path("calibration.png").read_bytes()[:4] == b"\x89PNG"
    fitted = run(
        *arguments, "--truth", "truth.txt", "--validation", "logits.npy", "--validation-truth", "truth.txt", "--json"
    )
    found = json.loads(fitted.stdout)
    assert found["frechet"]["squared_distance"] <= found["argmax"]["squared_distance"]
    assert found["temperature"]["after"] <= found["temperature"]["before"]


def test_locus_cover_and_next(folder: Path) -> None:
    observed = ("--observed", "cat,dog")
    found = run("locus", "tree.safetensors", *observed, "-o", "locus.png").stdout.split()
    assert found == ["animal", "cat", "dog", "locus.png"]
    assert sorted(run("cover", "tree.safetensors").stdout.split()) == ["car", "cat", "dog"]
    assert run("next", "tree.safetensors", *observed).stdout.split() == ["car"]
    assert json.loads(run("cover", "tree.safetensors", "--json").stdout)["exact"]
    drawn = run("locus", "tree.safetensors", "--observed", "cat,dog,car", "--simplex", "-o", "simplex.png", "--json")
    assert json.loads(drawn.stdout)["files"] == ["simplex.png"]
    assert all(Path(name).read_bytes()[:4] == b"\x89PNG" for name in ("locus.png", "simplex.png"))


def test_every_source_builds_the_same_tree(folder: Path) -> None:
    metric = ws.LabelMetric.load("tree.safetensors")
    labels = list(metric.labels)
    Path("parents.csv").write_text("entity,entity\ncat,animal\ndog,animal\ncar,thing\nanimal,entity\nthing,entity\n")
    Path("labels.json").write_text(json.dumps(labels))
    np.save("d.npy", metric.distances(labels))
    ws.save_checkpoint({"points": torch.eye(6)}, "e.safetensors")
    sources = {
        "parents": ("--parents", "parents.csv", "--labels", ",".join(labels)),
        "graph": ("--graph", "edges.csv", "--labels", "labels.json"),
        "matrix": ("--matrix", "d.npy", "--labels", "labels.json"),
    }
    for name, source in sources.items():
        assert run("build", *source, "-o", f"{name}.safetensors").exit_code == 0
        built = ws.LabelMetric.load(f"{name}.safetensors")
        assert built.labels == metric.labels
        np.testing.assert_array_equal(built.distances(labels), metric.distances(labels))
    for source in (("--embeddings", "e.safetensors", "--metric", "cosine"), ("--discrete", "a,b,c")):
        result = run("build", *source, "-o", "other.safetensors", "--json")
        assert json.loads(result.stdout)["labels"] in (3, 6)


CHILD_FIRST = "cat,animal\ndog,animal\ncar,thing\nanimal,entity\nthing,entity\n"
PARENT_FIRST = "animal,cat\nanimal,dog\nthing,car\nentity,animal\nentity,thing\n"


@pytest.mark.parametrize(
    "header", ["parent,child", "Parent,Name", "parent_id,id", "hypernym,hyponym", "superclass,class"]
)
def test_a_header_says_which_column_is_the_parent(header: str, folder: Path) -> None:
    Path("child.csv").write_text(CHILD_FIRST)
    Path("parent.csv").write_text(f"{header}\n{PARENT_FIRST}")
    for name in ("child", "parent"):
        assert run("build", "--parents", f"{name}.csv", "-o", f"{name}.safetensors").exit_code == 0
    child, parent = (ws.LabelMetric.load(f"{name}.safetensors") for name in ("child", "parent"))
    assert child.root == parent.root == "entity"
    np.testing.assert_array_equal(parent.distances(child.labels, child.labels), child.distances(child.labels))


@pytest.mark.parametrize("header", ["child,parent", "name,parent", "source,target"])
def test_other_headers_leave_the_columns_as_they_are(header: str, folder: Path) -> None:
    Path("child.csv").write_text(f"{header}\n{CHILD_FIRST}")
    assert run("build", "--parents", "child.csv", "-o", "child.safetensors").exit_code == 0
    assert ws.LabelMetric.load("child.safetensors").root == "entity"


def test_labels_that_are_numbers_are_written_as_such(folder: Path) -> None:
    places = np.arange(3.0)
    ws.LabelMetric.from_distance_matrix(np.abs(places[:, None] - places)).save("numbers.safetensors")
    np.save("ends.npy", np.asarray([[0.5, 0.5]]))
    found = run("predict", "numbers.safetensors", "ends.npy", "--observed", "0,2", "--json")
    assert json.loads(found.stdout)["names"] == [1]
    assert run("locus", "numbers.safetensors", "--observed", "0,2").stdout.split() == ["0", "1", "2"]


PREDICT = ("predict", "tree.safetensors")
MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "no source": (("build", "-o", "x.safetensors"), "A metric has exactly one source"),
    "two sources": (("build", "--edges", "edges.csv", "--discrete", "a,b", "-o", "x.safetensors"), "one source"),
    "another suffix": (("build", "--edges", "edges.csv", "-o", "x.json"), "is a .safetensors file"),
    "a cycle": (("build", "--edges", "cycle.csv", "-o", "x.safetensors"), "form a cycle: 'c' – 'b' – 'a' – 'c'"),
    "not an edge": (("build", "--edges", "classes.txt", "-o", "x.safetensors"), "line 1"),
    "no such file": (("build", "--matrix", "none.npy", "-o", "x.safetensors"), "none.npy cannot be read"),
    "which array": ((*PREDICT, "two.npz", "--observed", "classes.txt"), "--key"),
    "no such class": ((*PREDICT, "p.npy", "--observed", "dog,cat,carrr"), "Did you mean 'car'?"),
    "too few classes": ((*PREDICT, "p.npy", "--observed", "dog,cat"), "2 classes were observed"),
    "logits unsaid": ((*PREDICT, "logits.npy", "--observed", "classes.txt"), "Are these logits?"),
    "a temperature of probabilities": (
        (*PREDICT, "p.npy", "--observed", "classes.txt", "--temperature", "2"),
        "add --logits",
    ),
    "not a metric": (("locus", "other.safetensors", "--observed", "a"), "isn't a label metric"),
    "a simplex of two": (
        ("locus", "tree.safetensors", "--observed", "cat,dog", "--simplex", "-o", "x.png"),
        "three classes",
    ),
    "a simplex nowhere": (("locus", "tree.safetensors", "--observed", "cat,dog,car", "--simplex"), "give -o"),
    "too many next": (("next", "tree.safetensors", "--observed", "cat", "-n", "9"), "expected 0 to 5"),
    "no WordNet there": (("build", "--wordnet", "all", "--folder", "there", "-o", "x.safetensors"), "isn't in there"),
    "no WordNet": (("build", "--wordnet", "doggg", "-o", "x.safetensors"), "WordNet isn't in nowhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    mistake: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSPACE_WORDNET", "nowhere")
    Path("cycle.csv").write_text("a,b\nb,c\nc,a\n")
    ws.save_checkpoint({"a": torch.zeros(1)}, "other.safetensors")
    before = sorted(folder.iterdir())
    arguments, message = MISTAKES[mistake]
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
@pytest.mark.parametrize("scores", ["p.npy", "edges.csv"])
def test_a_metric_in_place_of_the_scores_is_reported(folder: Path, command: str, scores: str) -> None:
    truth = ("--truth", "truth.txt") if command == "evaluate" else ()
    result = run(command, scores, "tree.safetensors", "--observed", "classes.txt", *truth)
    assert result.exit_code == 2
    assert f"METRIC and SCORES look swapped: tree.safetensors is a label metric and {scores} isn't" in result.stderr


def test_a_built_tree_is_called_a_tree(folder: Path) -> None:
    assert run("build", "--edges", "edges.csv", "-o", "t.safetensors").stdout.splitlines()[0] == "tree, 6 labels"


@pytest.fixture
def calibration(folder: Path) -> np.ndarray:
    """Return probabilities of 20 calibration rows, written with their true classes."""
    rows = np.random.default_rng(0).dirichlet([2.0, 1.0, 1.0], 20)
    np.save("val.npy", rows)
    ranks = rows.argsort(1)[:, ::-1]
    Path("val.txt").write_text("".join(f"{CLASSES[ranks[row, row % 2]]}\n" for row in range(20)))
    return rows


@pytest.mark.parametrize("nodes", [False, True])
def test_prediction_sets_are_those_of_the_library(nodes: bool, folder: Path, calibration: np.ndarray) -> None:
    metric, truth = ws.LabelMetric.load("tree.safetensors"), Path("val.txt").read_text().split()
    if nodes:
        calibrated = ws.labels.conformal_nodes(
            calibration, truth, metric=metric, observed=CLASSES, root="entity", coverage=0.7
        )
        expected = [[node] for node in calibrated.predict(P)]
    else:
        expected = ws.labels.conformal_labels(calibration, truth, observed=CLASSES, coverage=0.7).predict(P)
    words = ("sets", "tree.safetensors", "p.npy", "--observed", "classes.txt", "--calibration", "val.npy", "--truth",
             "val.txt", "--coverage", "0.7", *(["--nodes", "--root", "entity"] if nodes else []))  # fmt: skip
    result = run(*words, "--json", "-o", "sets.json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["sets"] == json.loads(Path("sets.json").read_text())["sets"] == expected
    for _ in range(2):  # an earlier result is replaced
        assert run(*words, "-o", "sets.csv").exit_code == 0
        assert run(*words, "-o", "sets.json").exit_code == 0
    lines = [line.split(",") for line in Path("sets.csv").read_text().splitlines()]
    assert lines == [["row", "label"], *([str(row), label] for row, labels in enumerate(expected) for label in labels)]
    table = run(*words).stdout.splitlines()
    assert [line.split(maxsplit=1)[1] for line in table[1:]] == [", ".join(labels) for labels in expected]


def test_prediction_sets_of_labels_that_were_not_observed_name_the_option(folder: Path) -> None:
    words = ("sets", "tree.safetensors", "p.npy", "--observed", "classes.txt", "--calibration", "p.npy", "--truth")
    result = run(*words, "truth.txt")
    assert result.exit_code == 2
    assert "'animal' was not observed" in result.stderr
    assert "--nodes" in result.stderr
    assert run(*words, "truth.txt", "--nodes", "--root", "entity", "--coverage", "0.5").exit_code == 0
    assert "--root has no effect" in run(*words, "truth.txt", "--root", "entity").stderr
    bad = run(*words, "truth.txt", "-o", "sets.npy")
    assert (bad.exit_code, Path("sets.npy").exists()) == (2, False)
