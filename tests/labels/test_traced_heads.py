"""Heads by every route that records, batches or only shapes them: right for logits unlike the example, or an error."""

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from spaces import SPACES, all_distances, names
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.labels.rules import chunked as columns
from weightspace.labels.rules import dense
from weightspace.labels.rules import euclidean as nearest
from weightspace.tracing import runs_eagerly

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("by_structure")]

Route = Callable[[torch.nn.Module, Tensor], Callable[[Tensor], Tensor]]


def session(model: torch.nn.Module, example: Tensor, *, dynamo: bool) -> Callable[[Tensor], Tensor]:
    """Return what onnxruntime makes of a model that was exported for any number of rows."""
    file = io.BytesIO()
    rows: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if dynamo else {"dynamic_axes": {"x": {0: "rows"}}}
    )
    exported = torch.onnx.export(
        model, (example,), None if dynamo else file, input_names=["x"], dynamo=dynamo, verbose=False, **rows
    )
    if dynamo:
        assert exported is not None
        exported.save(file)
    run = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(run.run(None, {run.get_inputs()[0].name: x.numpy()})[0])


def compiled(model: torch.nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    found = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    found(example)
    return found


ROUTES: Mapping[str, Route] = {
    "trace": torch.jit.trace,
    "onnx": lambda model, example: session(model, example, dynamo=False),
    "onnx by dynamo": lambda model, example: session(model, example, dynamo=True),
    "export": lambda model, example: torch.export.export(
        model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module(),
    "compile": compiled,
    "vmap": lambda model, example: torch.vmap(model),
    "fx": lambda model, example: torch.fx.symbolic_trace(model),
}


def wide() -> ws.LabelMetric:
    """Return the tree of 63 labels that descends as deep as the logits tell it to."""
    return ws.LabelMetric.from_tree([-1, *((i - 1) // 2 for i in range(1, 63))], labels=names(63))


METRICS = {space: SPACES[space] for space in ("weighted graph", "matrix", "points", "discrete", "grid", "one")}
METRICS |= {"tree of 63": wide()}
CASES = [(space, {"exponent": exponent}) for space in METRICS for exponent in (1, 2)]
CASES += [("tree of 63", {"exponent": 3}), ("tree of 63", {"outputs": names(30)}), ("points", {"outputs": "observed"})]


def logits(rows: int, classes: int, scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(rows))).to(dtype)


def assert_least(metric: ws.LabelMetric, head: Any, x: Tensor, found: Tensor, options: Any) -> None:
    """Assert that what was found costs no more than the least of all costs, summed up naively."""
    p = torch.softmax(x.double(), -1).numpy()
    costs = p @ all_distances(metric)[: head.classes] ** options.get("exponent", 2)
    outputs = options.get("outputs", metric.labels)
    among = [
        metric.labels.index(name) for name in (metric.labels[: head.classes] if outputs == "observed" else outputs)
    ]
    assert found.dtype == torch.int64
    assert found.shape == x.shape[:-1]
    assert set(found.flatten().tolist()) <= set(among)
    chosen = np.take_along_axis(costs, found.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, costs[..., among].min(-1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_heads_traced_on_small_logits_are_right_for_others(route: str, case: tuple[str, Any]) -> None:
    space, options = case
    metric = METRICS[space]
    observed = list(metric.labels)[: max(1, 2 * len(metric) // 3)]
    head = metric.head(observed=observed, **options)
    recorded = ROUTES[route](head, logits(2, len(observed), 0.01))
    for rows, scale in ((1, 0.01), (1, 20.0), (33, 1.0), (200, 30.0)):
        x = logits(rows, len(observed), scale)
        assert_least(metric, head, x, recorded(x), options)


PRECISIONS = [(route, dtype) for route in ROUTES for dtype in (torch.float16, torch.bfloat16, torch.float64)]


@pytest.mark.parametrize(
    ("route", "dtype"),  # numpy has no bfloat16 to feed onnxruntime with
    [(route, dtype) for route, dtype in PRECISIONS if not (route.startswith("onnx") and dtype is torch.bfloat16)],
)
def test_logits_of_any_precision_are_recorded(route: str, dtype: torch.dtype) -> None:
    metric = METRICS["tree of 63"]
    head = metric.head(observed=names(40))
    rows = 2 if route == "export" else 1  # torch.export refuses an example of one row for any number of them
    recorded = ROUTES[route](head, logits(rows, 40, 0.01, dtype))
    x = logits(50, 40, 20.0, dtype)
    assert_least(metric, head, x, recorded(x), {})


@pytest.mark.parametrize("route", ROUTES)
def test_a_row_without_a_softmax_and_another_number_of_logits_are_no_labels(route: str) -> None:
    head = METRICS["tree of 63"].head(observed=names(40))
    recorded = ROUTES[route](head, logits(3, 40, 1.0))
    x = logits(4, 40, 5.0)
    x[2, 7], x[3, 0] = float("nan"), float("inf")
    found = recorded(x)
    assert found[:2].tolist() == head(x[:2]).tolist()
    assert found[2:].tolist() == [-1, -1]
    with pytest.raises(WeightspaceError, match="integers from 0 to 62"):
        head.names(found)
    for classes in (39, 80):
        with pytest.raises(Exception, match=r".+"):
            recorded(logits(4, classes, 1.0))


def test_a_trace_takes_logits_of_any_number_of_dimensions() -> None:
    head = METRICS["tree of 63"].head(observed=names(40))
    recorded: Any = torch.jit.trace(head, logits(2, 40, 1.0))
    x = logits(30, 40, 9.0)
    assert torch.equal(recorded(x.view(2, 15, 40)), head(x).view(2, 15))
    assert torch.equal(recorded(x[0]), head(x[0]))


def test_make_fx_records_no_descent() -> None:
    head = METRICS["tree of 63"].head(observed=names(63))
    x = logits(3, 63, 30.0)
    for options in ({}, {"pre_dispatch": True}):
        assert torch.equal(make_fx(head, **options)(logits(3, 63, 0.01))(x), head(x))


@pytest.mark.parametrize("space", METRICS)
def test_costs_are_batched_and_differentiated_row_by_row(space: str) -> None:
    head = METRICS[space].head(observed=METRICS[space].labels)
    x = logits(5, head.classes, 2.0).double().requires_grad_()
    assert torch.equal(torch.vmap(head.topk, in_dims=(0, None))(x, 1)[1][:, 0], head(x))
    head.expected_cost(x).amin(-1).sum().backward()
    by_row = torch.vmap(torch.func.grad(lambda row: head.expected_cost(row).amin()))(x.detach())
    torch.testing.assert_close(by_row, x.grad)
    assert torch.autograd.gradcheck(head.expected_cost, x)


@pytest.mark.parametrize("space", METRICS)
def test_a_detour_over_the_meta_device_loses_no_table(space: str) -> None:
    head = METRICS[space].head(observed=METRICS[space].labels, temperature=0.5)
    x, moved = logits(9, head.classes, 3.0), copy.deepcopy(head).to("meta")
    assert moved(x.to("meta")).shape == (9,)
    with pytest.raises(RuntimeError):
        moved(x)
    moved.to_empty(device="cpu").load_state_dict(head.state_dict())
    assert torch.equal(moved(x), head(x))
    assert torch.equal(copy.deepcopy(head).half().to("meta").to_empty(device="cpu").rule.decide(
        torch.softmax(x.double() / 0.5, -1)
    ), head.rule.decide(torch.softmax(x.double() / 0.5, -1)))  # fmt: skip


def test_scripting_is_refused_in_one_line() -> None:
    head = METRICS["tree of 63"].head(observed=names(63))
    with pytest.raises(WeightspaceError, match=r"torch.jit.script cannot .* torch.jit.trace"):
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(4, 63), head))


@pytest.mark.parametrize("route", [*ROUTES, "make_fx"])
def test_distances_that_are_found_in_every_call_are_not_recorded(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "KEPT", 0)
    metric, x = wide(), logits(3, 63, 1.0)
    head = metric.head(observed=names(63), exponent=3)
    assert isinstance(head.rule, columns.StreamedColumns)
    assert_least(metric, head, x, head(x), {"exponent": 3})
    routes = {**ROUTES, "make_fx": lambda model, example: make_fx(model)}
    routes["compile"] = lambda model, example: torch.compile(model, backend="aot_eager")  # fullgraph hides the message
    with pytest.raises(Exception, match="cannot be compiled, traced, exported or batched"):
        routes[route](head, x)(x)


@pytest.mark.parametrize("space", ["tree of 63", "weighted graph", "matrix", "points"])
def test_autocast_does_not_make_screens_rough(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dense, nearest):
        monkeypatch.setattr(module, "_SMALL", 0)
    metric = METRICS[space]
    head = metric.head(observed=metric.labels)
    x = logits(400, len(metric), 2.0)
    before = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x), before)


def test_only_plain_tensors_outside_of_all_modes_are_looked_at() -> None:
    x = torch.zeros(2)
    seen: list[bool] = []

    def look(tensor: Tensor) -> Tensor:
        seen.append(runs_eagerly(tensor))
        return tensor * 1

    look(x)
    look(torch.nn.Parameter(x))
    assert seen == [True, True]
    torch.jit.trace(look, x, check_trace=False)
    torch.vmap(look)(x)
    torch.func.grad(lambda t: look(t).sum())(x)
    make_fx(look)(x)
    make_fx(look, tracing_mode="fake")(x)
    make_fx(look, pre_dispatch=True)(x)
    look(x.to("meta"))
    torch.fx.symbolic_trace(look)
    assert seen[2:] == [False] * 8
