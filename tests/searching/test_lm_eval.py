"""Scores by lm-evaluation-harness: a module in its place writes what version 0.4.13 does."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import weightspace as ws
from weightspace import cli
from weightspace.errors import WeightspaceError
from weightspace.searching import LmEvalScore

#: A report of the harness, without the keys that are not read.
REPORT: dict[str, Any] = {
    "results": {
        "animals": {
            "name": "animals", "alias": "animals", "sample_len": 8, "acc,none": 0.5, "acc_stderr,none": 0.19,
            "acc_norm,none": 0.75,
        },
    },
    "group_subtasks": {"animals": []},
    "higher_is_better": {"animals": {"acc": True, "acc_norm": True}},
}  # fmt: skip
GROUPED = {
    "results": {"all": {"acc,none": 0.25, "alias": "all"}, "one": {"acc,none": 0.9}, "text": {"ppl,none": 3.0}},
    "group_subtasks": {"all": ["one"], "text": []},
    "higher_is_better": {"all": {"acc": True}, "text": {"ppl": False}},
}
#: A group that isn't aggregated has a row without a metric.
LISTED = {
    "results": {"both": {" ": " ", "alias": "both"}, "one": {"acc,none": 0.9}, "text": {"ppl,none": 3.0}},
    "group_subtasks": {"both": ["one", "text"], "one": [], "text": []},
    "higher_is_better": {"text": {"ppl": False}},
}
MODULE = """
import json, pathlib, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["--tasks"] == "broken":
    sys.exit("no such task")
report = json.loads(pathlib.Path("report.json").read_text())
if "weights" in report:
    import safetensors.torch
    model = arguments["--model_args"].removeprefix("pretrained=")
    weights = safetensors.torch.load_file(model + "/model.safetensors")
    report["results"]["animals"]["acc,none"] = -abs(float(weights["w"][0]) - 0.5)
folder = pathlib.Path(arguments["--output_path"], "model")
folder.mkdir()
(folder / "results_2026-01-01T00-00-00.json").write_text(json.dumps(report))
"""


@pytest.fixture
def harness(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Path("lm_eval.py").write_text(MODULE)
    Path("lm_eval-0.4.13.dist-info").mkdir()
    Path("lm_eval-0.4.13.dist-info/METADATA").write_text("Name: lm_eval\nVersion: 0.4.13\n")
    monkeypatch.syspath_prepend(str(tiny))
    monkeypatch.setenv("PYTHONPATH", str(tiny))
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    Path("report.json").write_text(json.dumps(REPORT))
    Path("model").mkdir()
    return tiny


@pytest.mark.parametrize(("report", "score"), [(REPORT, 0.5), (GROUPED, (0.25 - 3) / 2), (LISTED, (0.9 - 3) / 2)])
def test_the_first_metric_of_every_task_counts(report: dict[str, Any], score: float, harness: Path) -> None:
    Path("report.json").write_text(json.dumps(report))
    assert LmEvalScore("animals")(Path("model")) == score


def test_files_of_tasks_are_part_of_the_cache_key(harness: Path) -> None:
    Path("animals.yaml").write_text("task: animals")
    score = LmEvalScore("animals.yaml,arc_easy")
    assert list(score.files()) == ["animals.yaml"]
    assert score.command == "lm-eval:animals.yaml,arc_easy 0.4.13 cpu"


def test_files_that_tasks_name_are_part_of_the_cache_key(harness: Path) -> None:
    tasks, data = Path("tasks"), Path("data")
    for folder in (tasks, data):
        folder.mkdir()
    (tasks / "animals.yaml").write_text(
        "include: common.yaml\ndataset_path: json\ndataset_kwargs: {data_files: {test: 'data/*.jsonl', "
        'validation: "beside.jsonl"}}\nprocess_docs: !function code.prepared\ndescription: "a * and ** of /"\n'
    )
    (tasks / "common.yaml").write_text("metric_list: []\ndoc_to_text: !function more.text\n")
    others = ("tasks/code.py", "tasks/more.py", "data/1.jsonl", "data/2.jsonl", "tasks/beside.jsonl")
    for name in (*others, "unnamed.jsonl"):
        Path(name).write_text("")
    expected = {"tasks/animals.yaml", "tasks/common.yaml", *others}
    assert LmEvalScore("tasks/animals.yaml").files().keys() == expected
    assert LmEvalScore("tasks").files().keys() == expected


def test_a_search_by_the_harness(harness: Path) -> None:
    Path("report.json").write_text(json.dumps({**REPORT, "weights": True}))
    for name, value in {"zero": 0.0, "one": 1.0}.items():
        Path(name).mkdir()
        ws.save_checkpoint({"w": torch.full((2,), value)}, Path(name) / "model.safetensors")
        Path(name, "config.json").write_text("{}")
    Path("recipe.yml").write_text(
        "merge_method: task_arithmetic\nbase_model: zero\n"
        "models: [{model: one, parameters: {weight: {search: [0, 1]}}}]\n"
    )
    words = "search recipe.yml --score lm-eval:animals --engine grid --trials 3 --no-references -o best --json"
    done = CliRunner().invoke(cli.main, words.split(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert [trial["scores"]["score"] for trial in told["trials"]] == [-0.5, 0, -0.5]
    assert ws.load_checkpoint("best")["w"].tolist() == [0.5, 0.5]


def test_mistakes_are_one_line(harness: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"needs tasks, such as lm-eval:arc_easy"):
        LmEvalScore("")
    with pytest.raises(WeightspaceError, match=r"a\.safetensors is a file"):
        LmEvalScore("animals")(Path("a.safetensors"))
    with pytest.raises(WeightspaceError, match=r"ended with status 1: no such task"):
        LmEvalScore("broken")(Path("model"))
    Path("report.json").write_text(json.dumps({"results": {"animals": {"alias": "animals"}}}))
    with pytest.raises(WeightspaceError, match=r"reports no metric of animals"):
        LmEvalScore("animals")(Path("model"))
    Path("report.json").write_text("{}")
    with pytest.raises(WeightspaceError, match=r"reports no results"):
        LmEvalScore("animals")(Path("model"))


def test_the_package_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightspaceError, match=r"needs the package lm_eval\. Install it by pip install lm-eval"):
        LmEvalScore("animals")
