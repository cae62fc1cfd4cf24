import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from weightspace.connectivity import BarrierMatrix, Curve, Plane
from weightspace.errors import WeightspaceError
from weightspace.labels import LabelMetric
from weightspace.plots import draw_calibration, draw_curves, draw_locus, draw_matrices, draw_planes, draw_soups
from weightspace.soups import Row, SoupReport

NAIVE = Curve((0.0, 0.5, 1.0), (0.1, 1.2, 0.1), (0.98, 0.60, 0.97))
MATCHED = Curve((0.0, 0.5, 1.0), (0.1, 0.11, 0.1), (0.98, 0.98, 0.97))
BOTH = {"as trained": NAIVE, "matched": MATCHED}
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_equal_curves_give_equal_files_of_the_format_that_the_suffix_names(tmp_path: Path, suffix: str) -> None:
    first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
    for path in (first, again):
        figure = draw_curves(BOTH, path, title="two seeds")
        assert [axes.get_xlabel() for axes in figure.axes] == ["position λ from A (0) to B (1)"] * 2
    assert first.read_bytes().startswith(SIGNATURES[suffix])
    assert first.read_bytes() == again.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_picture_says_what_is_on_its_axes_and_how_high_the_barriers_are(tmp_path: Path) -> None:
    draw_curves(BOTH, tmp_path / "curves.svg", title="two seeds")
    text = (tmp_path / "curves.svg").read_text()
    for words in (
        "two seeds",
        "test loss (nats)",
        "test accuracy",
        "position λ",
        "as trained: barrier 1.100 nats",
        "matched: barrier 0.010 nats",
    ):
        assert words in text


def test_curves_without_accuracies_have_one_panel(tmp_path: Path) -> None:
    draw_curves({"loss only": replace(NAIVE, accuracy=None)}, tmp_path / "one.svg")
    assert "accuracy" not in (tmp_path / "one.svg").read_text()


def test_many_curves_can_be_drawn(tmp_path: Path) -> None:
    draw_curves({f"curve {index}": NAIVE for index in range(9)}, tmp_path / "many.svg")
    assert "curve 8" in (tmp_path / "many.svg").read_text()


@pytest.mark.parametrize(
    ("curves", "name", "message"),
    [
        (BOTH, "curves.gif", r"\.png, \.svg, \.pdf file; found 'curves.gif'"),
        ({}, "curves.png", "no curves"),
        ({"two": Curve((0.0, 1.0), (1.0, 1.0))}, "curves.png", "three points"),
    ],
)
def test_invalid_pictures_are_refused_and_nothing_is_written(tmp_path, curves, name, message) -> None:
    with pytest.raises(WeightspaceError, match=message):
        draw_curves(curves, tmp_path / name)
    assert not list(tmp_path.iterdir())


PLANE = Plane(
    models=("first", "second", "third"),
    positions=((0.0, 0.0), (2.0, 0.0), (1.0, 1.5)),
    model_loss=(0.1, 0.1, 0.1),
    x=(-0.5, 1.0, 2.5),
    y=(-0.5, 0.5, 2.0),
    loss=((0.1, 2.0, 0.1), (0.5, 3.0, math.inf), (1.0, 0.1, 1.0)),
)
MATRIX = BarrierMatrix(
    models=("first", "second"),
    barrier=((0.0, 1.25), (1.25, 0.0)),
    loss=(0.1, 0.1),
    accuracy_barrier=((0.0, -0.0204), (-0.0204, 0.0)),
    accuracy=(0.9, 0.9),
)


@pytest.mark.parametrize(("draw", "result"), [(draw_planes, PLANE), (draw_matrices, MATRIX)])
@pytest.mark.parametrize("suffix", SIGNATURES)
def test_equal_planes_and_matrices_give_equal_files(tmp_path: Path, draw, result, suffix: str) -> None:
    first, again = tmp_path / f"first{suffix}", tmp_path / f"again{suffix}"
    for path in (first, again):
        draw({"naive": result, "matched": result}, path, title="three seeds")
    assert first.read_bytes().startswith(SIGNATURES[suffix])
    assert first.read_bytes() == again.read_bytes()


def test_the_picture_of_a_plane_names_its_models_and_its_scale(tmp_path: Path) -> None:
    draw_planes({"naive": PLANE}, tmp_path / "plane.svg", title="three seeds")
    text = (tmp_path / "plane.svg").read_text()
    for words in ("three seeds", "first", "second", "third", "test loss (nats)", "distance in weight space"):
        assert words in text
    assert "naive" not in text  # one plane needs no label


@pytest.mark.parametrize("level", [0.0, 0.7])
def test_a_flat_plane_can_be_drawn(tmp_path: Path, level: float) -> None:
    draw_planes({"flat": replace(PLANE, loss=((level,) * 3,) * 3)}, tmp_path / "flat.png")
    assert (tmp_path / "flat.png").is_file()


def test_the_picture_of_a_matrix_has_the_barriers_as_numbers(tmp_path: Path) -> None:
    draw_matrices({"naive": MATRIX, "matched": MATRIX}, tmp_path / "matrix.svg")
    text = (tmp_path / "matrix.svg").read_text()
    for words in ("first", "second", "1.250", "−2.04", "barrier of the test loss (nats)", "naive", "matched"):
        assert words in text


def test_a_matrix_without_accuracies_has_one_panel(tmp_path: Path) -> None:
    draw_matrices({"x": replace(MATRIX, accuracy_barrier=None, accuracy=None)}, tmp_path / "matrix.svg")
    assert "accuracy" not in (tmp_path / "matrix.svg").read_text()


@pytest.mark.parametrize(
    ("draw", "results", "message"),
    [
        (draw_planes, {}, "no planes"),
        (draw_planes, {"x": replace(PLANE, loss=((math.nan,) * 3,) * 3)}, "no finite loss"),
        (draw_matrices, {}, "no matrices"),
    ],
)
def test_planes_and_matrices_that_cannot_be_drawn_are_refused(tmp_path: Path, draw, results, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        draw(results, tmp_path / "picture.png")
    assert not list(tmp_path.iterdir())


def test_every_drawing_returns_its_figure() -> None:
    import ast
    from pathlib import Path

    folder = Path(__file__).parents[1] / "weightspace" / "plots"
    drawings = [
        node
        for path in folder.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("draw_")
    ]
    assert len(drawings) > 10
    for node in drawings:
        assert ast.unparse(node.returns or ast.Constant(None)) == "Figure", node.name
        assert isinstance(node.body[-1], ast.Return), node.name


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("labels", [("linear",), ("naive", "weight-matching")])
@pytest.mark.parametrize("title", [None, "seeds of a small network"])
def test_all_headings_of_matrices_are_inside_the_picture(tmp_path: Path, count: int, labels, title) -> None:
    square = tuple(tuple(0.1 * abs(i - j) for j in range(count)) for i in range(count))
    ends = (0.1,) * count
    matrix = BarrierMatrix(tuple("abc")[:count], square, ends, accuracy_barrier=square, accuracy=ends)
    figure = draw_matrices(dict.fromkeys(labels, matrix), tmp_path / "matrix.png", title=title)
    FigureCanvasAgg(figure).draw()  # places texts in the figure's own resolution
    canvas = figure.bbox
    for axes in figure.axes:
        for text in (axes._left_title, *axes.get_xticklabels(), *axes.get_yticklabels()):  # type: ignore[attr-defined]
            box = text.get_window_extent()
            assert canvas.x0 <= box.x0
            assert box.x1 <= canvas.x1
            assert canvas.y0 <= box.y0
            assert box.y1 <= canvas.y1


def test_marks_of_soups_in_one_place_hide_none(tmp_path: Path) -> None:
    scores = {"validation": {"accuracy": 0.9}, "test": {"accuracy": 0.8}}
    rows = tuple(Row(name, scores, 1, (0,)) for name in ("uniform", "learned", "ensemble"))
    singles = {split: (values,) for split, values in scores.items()}
    axes = draw_soups(SoupReport("task", "accuracy", ("a",), singles, rows), tmp_path / "soups.png").axes[0]
    sizes = {line.get_label(): float(line.get_markersize()) for line in axes.get_lines()}
    assert sizes["uniform"] > sizes["learned"] > sizes["ensemble"]


def test_names_of_a_locus_can_be_read_where_they_cross_edges(tmp_path: Path) -> None:
    metric = LabelMetric.from_tree(edges=[("root", "animal"), ("animal", "cat"), ("animal", "dog"), ("root", "car")])
    figure = draw_locus(metric, ["cat", "car"], tmp_path / "locus.png")
    names = [text for text in figure.axes[0].texts if text.get_text() in metric.labels]
    assert len(names) == 5
    assert all(text.get_path_effects() for text in names)
    legend = figure.legends[0]
    counts = [text.get_text() for text in legend.get_texts()]
    assert counts == ["observed: 2", "others that can be predicted: 2", "cannot: 1"]
    assert legend.get_window_extent().width <= figure.bbox.width


@pytest.mark.parametrize("chain", [1, 6])
def test_the_root_of_a_tree_is_on_top_and_children_below_their_parents(chain: int, tmp_path: Path) -> None:
    parents = {"a": "root", "b": "root", "c0": "root", **{f"c{i + 1}": f"c{i}" for i in range(chain)}, "d": "c0"}
    metric = LabelMetric.from_tree(parents)
    figure = draw_locus(metric, ["a", "b"], tmp_path / "locus.png")
    height = {text.get_text(): text.xy[1] for text in figure.axes[0].texts}
    assert max(height, key=height.__getitem__) == "root"
    assert all(height[child] == height[parent] - 1 for child, parent in parents.items())


def test_the_legend_of_temperatures_hides_no_curve(tmp_path: Path) -> None:
    metric = LabelMetric.discrete(["a", "b"])
    logits = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5]]
    chosen = {"metric": metric, "observed": ["a", "b"]}
    figure = draw_calibration(logits, ["a", "b", "b"], tmp_path / "calibration.png", **chosen)
    assert all(axes.get_legend() is None for axes in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Fréchet mean", "argmax", "best constant"]
