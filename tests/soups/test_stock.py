"""Model Stock among the recipes."""

from pathlib import Path

import pytest
from kitchen import PLAIN, TASK, equal, fine_tunes, saved

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.soups import compare_recipes, model_stock_soup
from weightspace.tasks import network_with


def test_it_is_the_merge_of_that_name_with_reset_statistics(tmp_path: Path) -> None:
    base, states = fine_tunes(PLAIN, 3)
    assert equal(model_stock_soup(states, base), ws.merge(states, "model_stock", base=base))
    paths = saved([base, *states], tmp_path)
    assert equal(model_stock_soup(paths[1:], paths[0]), ws.merge(states, "model_stock", base=base))
    base, states = fine_tunes(TASK, 3)
    averaged, measured = (model_stock_soup(states, base, TASK, statistics=how) for how in ("none", "reset"))
    assert equal(averaged, ws.merge(states, "model_stock", base=base))
    assert not averaged["1.running_mean"].equal(measured["1.running_mean"])


def test_it_has_a_row_where_there_is_a_base() -> None:
    base, states = fine_tunes(TASK, 3)
    report = compare_recipes(states, TASK, base=base)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [
        *("best single", "uniform", "greedy", "learned", "model_stock", "ensemble", "best single on test"),
    ]
    state = model_stock_soup(states, base, TASK)
    assert rows["model_stock"].scores["test"] == TASK.score(network_with(TASK, state), "test")
    assert rows["model_stock"].chosen == (0, 1, 2)
    assert "model_stock" not in {row.name for row in compare_recipes(states, TASK).rows}


def test_invalid_stocks_are_refused() -> None:
    base, states = fine_tunes(PLAIN, 2)
    with pytest.raises(WeightspaceError, match=r"'model_stock' starts from the pretrained model; pass base="):
        compare_recipes(states, PLAIN, ["model_stock"])
    with pytest.raises(WeightspaceError, match="at least two fine-tunes"):
        model_stock_soup(states[:1], base)
    with pytest.raises(CheckpointError, match="do not fit"):
        model_stock_soup(states, fine_tunes(TASK, 1)[0])
