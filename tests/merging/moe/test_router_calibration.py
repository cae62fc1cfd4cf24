"""Calibrated routers: against the solution of the dense linear system, copies, real mixtures, and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import weightspace as ws
from weightspace import cli
from weightspace.checkpoints import StateDict
from weightspace.merging import calibrate_routers
from weightspace.tasks import network_with

WIDTH, EXPERTS = 6, 4


class Mixture(nn.Module):
    """A residual layer of experts."""

    def __init__(self, width: int = WIDTH, experts: int = EXPERTS, *, bias: bool = False, hidden: int = 5) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.gate = nn.Linear(width, experts, bias=bias)
        up, down = torch.randn(experts, hidden, width), torch.randn(experts, width, hidden)
        self.experts = nn.ParameterDict({"up": up / width**0.5, "down": down / hidden**0.5})

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.norm(x)
        weights, chosen = self.gate(inputs).softmax(-1).topk(2, -1)
        hidden = torch.einsum("nkhw,nw->nkh", self.experts["up"][chosen], inputs).relu()
        shares = weights / weights.sum(-1, keepdim=True)
        return x + torch.einsum("nkwh,nkh,nk->nw", self.experts["down"][chosen], hidden, shares)


class Data:
    """A task that only runs a network on inputs."""

    objective = "loss"

    def __init__(self, build: Callable[[], nn.Module], inputs: Tensor, name: str = "data") -> None:
        self.network, self.inputs, self.example_args, self.name = build, inputs, (inputs[:2],), name

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        return {"loss": 0.0}

    def batches(self, split: str, seed: int) -> Any:
        return iter(self.inputs.split(8))

    def loss(self, module: nn.Module, batch: Tensor) -> Tensor:
        out = module(batch)
        return (out if isinstance(out, Tensor) else out.logits).square().mean()


def states_of(build: Callable[[], nn.Module], count: int) -> list[StateDict]:
    torch.manual_seed(0)
    return [{name: tensor.clone() for name, tensor in build().state_dict().items()} for _ in range(count)]


def dense_solution(start: Tensor, parents: list[Tensor], inputs: list[Tensor], reduce: float) -> Tensor:
    """Return the calibrated router by the pseudo-inverse of the whole matrix."""
    system = torch.zeros(start.numel(), start.numel(), dtype=torch.float64)
    target = torch.zeros(start.numel(), dtype=torch.float64)
    for parent, rows in zip(parents, inputs, strict=True):
        hessian = torch.zeros_like(system)
        for x in rows:
            p = (parent @ x).softmax(0)
            hessian += torch.kron(p.diag() - p.outer(p), x.outer(x)) / len(rows)
        hessian = reduce * hessian + (1 - reduce) * hessian.diagonal().diag()
        system += hessian
        target += hessian @ (parent - start).flatten()
    return start + (torch.linalg.pinv(system, hermitian=True) @ target).view_as(start)


@pytest.mark.parametrize("reduce", [0.9, 1.0, 0.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_router_is_the_solution_of_the_linear_system(reduce: float, bias: bool) -> None:
    def build() -> nn.Module:
        return Mixture(bias=bias)

    sources = states_of(build, 2)
    merged = ws.merge(sources)
    inputs = [torch.randn(24, WIDTH), 2 * torch.randn(30, WIDTH) - 1]
    tasks = [Data(build, one) for one in inputs]
    calibrated = calibrate_routers(merged, sources, tasks, reduce=reduce)
    norm: Any = network_with(tasks[0], merged).get_submodule("norm")

    def matrix(state: StateDict) -> Tensor:
        weight = state["gate.weight"].double()
        return torch.cat([weight, state["gate.bias"].double()[:, None]], 1) if bias else weight

    rows = [norm(one).detach().double() for one in inputs]
    rows = [torch.cat([one, torch.ones(len(one), 1)], 1) for one in rows] if bias else rows
    expected = dense_solution(matrix(merged), [matrix(one) for one in sources], rows, reduce)
    torch.testing.assert_close(matrix(calibrated), expected, rtol=1e-4, atol=1e-5)
    assert list(calibrated) == list(merged)
    assert all(calibrated[name] is tensor for name, tensor in merged.items() if not name.startswith("gate."))


def test_copies_give_the_copy_bit_for_bit() -> None:
    def build() -> nn.Module:
        return nn.Sequential(Mixture(), Mixture(bias=True))

    (state,) = states_of(build, 1)
    task = Data(build, torch.randn(40, WIDTH))
    calibrated = calibrate_routers(state, [state, state], [task, task])
    assert all(torch.equal(calibrated[name], tensor) for name, tensor in state.items())


def test_routers_see_what_calibrated_routers_before_them_pass_on() -> None:
    def build() -> nn.Module:
        return nn.Sequential(Mixture(), Mixture())

    sources = states_of(build, 2)
    merged = ws.merge(sources)
    tasks = [Data(build, torch.randn(40, WIDTH)) for _ in sources]
    names: list[str] = []
    calibrated = calibrate_routers(merged, sources, tasks, on_progress=lambda at: names.append(at.name))
    assert names == ["0.gate", "1.gate"]
    first = {**merged, "0.gate.weight": calibrated["0.gate.weight"]}
    second = calibrate_routers(first, sources, tasks, routers=["1.*gate"])
    torch.testing.assert_close(second["1.gate.weight"], calibrated["1.gate.weight"])
    alone = calibrate_routers(merged, sources, tasks, routers=["1.gate"])
    assert not torch.allclose(alone["1.gate.weight"], calibrated["1.gate.weight"], atol=1e-3)


@torch.no_grad()
def divergence(task: Data, merged: StateDict, source: StateDict) -> float:
    """Return the divergence of the merged router's probabilities from a parent's, in nats per input."""
    norm: Any = network_with(task, merged).get_submodule("norm")
    inputs = norm(task.inputs)
    mine, theirs = ((inputs @ one["gate.weight"].T).log_softmax(-1) for one in (merged, source))
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


def test_probabilities_come_nearer_to_those_of_the_parents() -> None:
    (base,) = states_of(Mixture, 1)
    sources = [{name: one + 0.3 * torch.randn_like(one) for name, one in base.items()} for _ in range(2)]
    tasks = [Data(Mixture, torch.randn(64, WIDTH) @ torch.diag(torch.rand(WIDTH) * 3)) for _ in sources]
    merged = ws.merge(sources)
    calibrated = calibrate_routers(merged, sources, tasks, reduce=1)
    before, after = (
        sum(divergence(task, state, source) for task, source in zip(tasks, sources, strict=True))
        for state in (merged, calibrated)
    )
    assert after < 0.8 * before


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "vocab_size": 31,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "DeepseekV3": {
        "moe_intermediate_size": 8,
        "n_routed_experts": 4,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
    },
    "Llama4": {"num_local_experts": 4, "num_experts_per_tok": 1, "head_dim": 8, "moe_layers": [0, 1]},
}


def family(name: str) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers", minversion="5")
    kind = "Llama4Text" if name == "Llama4" else name
    config = getattr(transformers, f"{kind}Config")(**SMALL, **FAMILIES[name])

    def build() -> nn.Module:
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        return model

    return build


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3Moe", "GptOss"])
def test_routers_of_transformers_are_found_also_for_files(name: str, tmp_path: Path) -> None:
    build = family(name)
    torch.manual_seed(0)
    for letter in "ab":
        model: Any = build()
        model.save_pretrained(tmp_path / letter)
    sources = [ws.load_checkpoint(tmp_path / letter) for letter in "ab"]
    merged = ws.merge(sources)
    task = Data(build, torch.randint(3, 31, (16, 5)))
    calibrated = calibrate_routers(merged, sources, [task, task])
    changed = [key for key, tensor in merged.items() if not torch.equal(tensor, calibrated[key])]
    routers = ("gate.weight",) if name != "GptOss" else ("router.weight", "router.bias")
    assert calibrated.keys() == merged.keys()
    assert len(changed) == 2 * len(routers)
    assert all(key.endswith(routers) for key in changed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("DeepseekV3", r"'model.layers.0.mlp.gate' selects experts by scores with 'e_score_correction_bias'"),
        ("Llama4", r"does not weight experts by a softmax of its logits"),
    ],
)
def test_other_routers_are_refused(name: str, message: str) -> None:
    build = family(name)
    sources = states_of(build, 2)
    task = Data(build, torch.randint(3, 31, (16, 5)))
    options: dict[str, Any] = {"routers": ["*.router"]} if name == "Llama4" else {}
    with pytest.raises(ws.WeightspaceError, match=message):
        calibrate_routers(sources[0], sources, [task, task], **options)


def test_wrong_arguments_are_refused() -> None:
    sources = states_of(Mixture, 2)
    task = Data(Mixture, torch.randn(8, WIDTH))
    tasks = [task, task]
    for arguments, options, message in (
        ((sources[0], sources, [task]), {}, "one task per source; found 2 sources and 1 tasks"),
        ((sources[0], sources, tasks), {"reduce": 1.5}, "reduce=1.5; expected a factor from 0 to 1"),
        ((sources[0], sources, tasks), {"examples": 0}, "at least one example; found examples=0"),
        ((sources[0], sources, tasks), {"routers": ["router"]}, "no module 'router', which should be a router"),
        ((sources[0], sources, tasks), {"routers": ["experts"]}, "has the parameters down, up; expected a matrix"),
        ((sources[0], [sources[0], {}], tasks), {}, "source 2 do not fit together"),
    ):
        with pytest.raises(ws.WeightspaceError, match=message):
            calibrate_routers(*arguments, **options)  # type: ignore[arg-type]
    plain = Data(lambda: nn.Linear(WIDTH, 2), torch.randn(8, WIDTH))
    state = plain.network().state_dict()
    with pytest.raises(ws.WeightspaceError, match="no module named gate or router beside its experts"):
        calibrate_routers(state, [state], [plain])


TASKS = """
from functools import partial
import torch
from torch import nn
from test_router_calibration import Mixture
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.tasks.classification import Examples
from weightspace.zoo.digits import digits_examples

def build():
    layers = (Mixture(32, 8, hidden=16) for _ in range(3))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *layers, nn.Linear(32, 10))

def load(turn):
    return {split: Examples(turn(one.inputs), one.labels) for split, one in digits_examples().items()}

def flip(images):
    return images.flip(2)

def transpose(images):
    return images.transpose(2, 3).contiguous()

upright, inverted, transposed = (
    ClassificationTask(name, build, partial(load, turn), recipe=TrainConfig(epochs=8, learning_rate=2e-3))
    for name, turn in (("upright", torch.clone), ("inverted", flip), ("transposed", transpose))
)
"""


def tuned(task: Any, state: StateDict, seed: int) -> StateDict:
    """Return a network after further training on a task."""
    module = network_with(task, state).train()
    adam = torch.optim.Adam(module.parameters(), 2e-3)
    for epoch in range(12):
        for batch in task.batches("train", 100 * seed + epoch):
            adam.zero_grad()
            task.loss(module, batch).backward()
            adam.step()
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def test_the_command_lowers_the_loss_of_merged_fine_tunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("tasks.py").write_text(TASKS)
    tasks = [ws.load_task(f"tasks.py:{name}") for name in ("inverted", "transposed")]
    base = ws.train(ws.load_task("tasks.py:upright"), 0)
    sources = [tuned(task, base, seed) for seed, task in enumerate(tasks)]
    for name, state in zip(("a", "b", "m"), (*sources, ws.merge(sources)), strict=True):
        ws.save_checkpoint(state, f"{name}.safetensors")
    models = "m.safetensors a.safetensors b.safetensors"
    command = f"calibrate-routers {models} --task tasks.py:inverted --task tasks.py:transposed -o c.safetensors --json"
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tasks"] == ["tasks.py:inverted", "tasks.py:transposed"]
    calibrated = ws.load_checkpoint("c.safetensors")
    expected = calibrate_routers(ws.merge(sources), sources, tasks)
    assert all(torch.equal(calibrated[name], tensor) for name, tensor in expected.items())

    def loss(state: StateDict) -> float:
        return sum(task.score(network_with(task, state), split="test")["loss"] for task in tasks) / 2

    assert loss(calibrated) < 0.95 * loss(ws.merge(sources))


def test_the_command_refuses_other_numbers_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "mab":
        ws.save_checkpoint({"weight": torch.zeros(2)}, f"{name}.pt")
    command = "calibrate-routers m.pt a.pt b.pt -o c.pt" + " --task digits-mlp" * 3
    result = CliRunner().invoke(cli.main, command.split())
    assert result.exit_code == 2
    assert "Found 3 tasks for 2 sources; expected one for each, or one." in result.stderr
