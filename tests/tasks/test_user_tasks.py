from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.tasks import ClassificationTask, Examples
from weightspace.zoo import load_task

TASK = """
    import torch
    from torch import nn
    from helper import NAME

    class Mine:
        name, objective = NAME, "loss"
        example_args = (torch.ones(1, 2),)
        def network(self): return nn.Linear(2, 1)
        def score(self, module, split="test"): return {"loss": 1.0}
        def batches(self, split, seed): return []
        def loss(self, module, batch): return torch.zeros((), requires_grad=True)

    def build(): return Mine()
    def broken(): raise KeyError("no such thing")
    task = Mine()
    seven = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("NAME = 'mine'\n")
    path = tmp_path / "experiment.py"
    path.write_text(dedent(TASK))
    return path


@pytest.mark.parametrize("name", ["task", "build", "Mine"])
def test_a_task_is_an_object_a_function_or_a_class_in_a_file(file: Path, name: str) -> None:
    assert load_task(f"{file}:{name}").name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biuld", "'biuld'.*Did you mean 'build'"),
        ("seven", "int without name, objective"),
        ("broken", "KeyError"),
    ],
)
def test_an_object_that_is_no_task_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        load_task(f"{file}:{name}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"no file .*absent\.py"):
        load_task(f"{tmp_path}/absent.py:task")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 / 0", r"experiment\.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_module", r"experiment\.py:2: ModuleNotFoundError"),
        ("def f(:", r"experiment\.py:2: SyntaxError"),
        ("raise SystemExit(3)", r"experiment\.py:2: SystemExit: 3"),
    ],
)
def test_a_file_that_fails_is_one_line_with_the_place(file: Path, line: str, message: str) -> None:
    file.write_text(f"x = 1\n{line}\n")
    with pytest.raises(WeightspaceError, match=message) as caught:
        load_task(f"{file}:x")
    assert "\n" not in str(caught.value)


def test_another_form_is_refused(file: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"file\.py:object"):
        load_task(f"{file}:")


@pytest.mark.parametrize("fault", ["shapes", "labels", "loader"])
@pytest.mark.parametrize("command", ["train", "barrier", "soup", "evidence"])
def test_a_task_that_fails_on_its_own_data_is_one_line(fault: str, command: str) -> None:
    inputs, labels = torch.randn(12, 4), torch.arange(12) % 3
    if fault == "shapes":
        inputs = torch.randn(12, 5)
    if fault == "labels":
        labels = labels + 3

    def load() -> dict[str, Examples]:
        if fault == "loader":
            raise ZeroDivisionError("division by zero")
        return dict.fromkeys(("train", "validation", "test"), Examples(inputs, labels))

    task = ClassificationTask("own", lambda: nn.Sequential(nn.Linear(4, 3)), load, batch_size=4)
    state = task.network().state_dict()
    run = {
        "train": lambda: ws.train(task, 0, epochs=1),
        "barrier": lambda: ws.loss_curve(task, state, state, 3),
        "soup": lambda: ws.greedy_soup([state, state], task),
        "evidence": lambda: ws.collect_evidence(task, state, kind="fisher", examples=4),
    }[command]
    line = r"Task 'own' failed .*: \w+Error: .* Do the inputs have|Loading the examples of task 'own' raised Zero"
    with pytest.raises(WeightspaceError, match=line):
        run()
