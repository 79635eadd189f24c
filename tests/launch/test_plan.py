"""What is planned is what is measured."""

import copy

import pytest
import torch
from expert_run import experts_run
from torch.profiler import ProfilerActivity, profile

from allsight.backbones import InternImage, ResNet
from allsight.config import ConfigError, Mixture, replace
from allsight.engine.budget.machines import MACHINES, machine
from allsight.engine.budget.passes import pass_cost, without_memory
from allsight.engine.budget.shards import ShardedPass, share_of
from allsight.engine.budget.state import Sizes, held, messages
from allsight.engine.config import RunConfig
from allsight.engine.optim import SGD
from allsight.engine.schedule import Cosine
from allsight.launch.plan import plan_run
from allsight.launch.plan.search import search_plans
from allsight.models import MultiHead
from allsight.models.base import model_for_tasks
from allsight.tasks import Classification
from allsight.tasks.base import build_tasks
from allsight.types import Batch

BACKBONES = {
    "internimage": InternImage.Config.variant("nano"),
    "internimage, recomputed": InternImage.Config.variant("nano", remat="block"),
    "resnet": ResNet.Config.variant("r18"),
}


def _run(backbone, **changes):
    task = Classification.Config(data="imagefolder:none", num_classes=10, batch_size=64, size_px=64)
    config = RunConfig(
        name="planned",
        model=MultiHead.Config(backbone=backbone),
        tasks=Mixture(a=task),
        schedule=Cosine.Config(steps=100),
    )
    return replace(config, changes)


def _measured(model, batch) -> int:
    """Highest sum of allocations in a forward and backward pass, as PyTorch's profiler sees it."""
    # The CPU's convolution library copies weights into a layout of its own, which other devices do not.
    with (
        torch.backends.mkldnn.flags(enabled=False),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace,
    ):
        model(batch)[0]["logits"].mean().backward()
    assert trace.profiler is not None and trace.profiler.kineto_results is not None
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", list(BACKBONES))
def test_memory_of_a_pass_is_what_the_profiler_sees(name):
    config = _run(BACKBONES[name])
    tasks = build_tasks(config.tasks, None)
    rows = 4
    batch = Batch(
        "a", ("x",) * rows, {"image": torch.zeros(rows, 3, 64, 64)}, {"label": torch.zeros(rows).long()}
    )
    model = model_for_tasks(config.model, tasks).train()
    measured = _measured(model, batch)
    with without_memory() as mode:
        fake = model_for_tasks(config.model, tasks).train()
        cost = pass_cost(fake, batch, precision="fp32", mode=mode)
    assert cost.peak_with_gradients - batch.inputs["image"].nbytes == pytest.approx(measured, rel=0.15)


def test_what_has_no_memory_is_copied_without_touching_any(monkeypatch):
    """Slow copies of weights are deep copies; PyTorch's would write over the memory of others."""

    def of_storage(self, memo):
        raise AssertionError("the storage of a tensor without memory was copied")

    monkeypatch.setattr(torch.storage.TypedStorage, "_deepcopy", of_storage)
    with without_memory():
        layer = torch.nn.Linear(3, 2).requires_grad_(False)
        tied = torch.nn.ModuleList([layer, layer, torch.nn.BatchNorm1d(2)])
        copied = copy.deepcopy(tied)
        assert copied[0].weight is copied[1].weight and copied[0].weight is not layer.weight
        assert isinstance(copied[0].weight, torch.nn.Parameter) and copied[0].weight.shape == (2, 3)
        assert not copied[0].weight.requires_grad and copied[2].weight.requires_grad
        assert copied[2].running_mean is not tied[2].running_mean
    monkeypatch.undo()
    assert torch.equal(copy.deepcopy(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gradients_of_a_convolution_cost_twice_its_forward(groups):
    with without_memory() as mode:
        layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        images = torch.zeros(2, 8, 5, 7)
        batch = Batch("a", ("x", "y"), {"image": images}, {"label": torch.zeros(2).long()})

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.layer = torch.nn.Conv2d(8, 8, 1), layer

            def forward(self, batch, state=None):
                return {"x": self.layer(self.first(batch.inputs["image"]))}, None

        cost = pass_cost(Model(), batch, precision="fp32", mode=mode)  # type: ignore[arg-type]
    places, kernel = 2 * 5 * 7 * 8, 8 // groups * 9
    # The first layer's input needs no gradient.
    assert cost.work.flops == 2 * places * (3 * kernel + 2 * 8)


def test_of_what_contents_pick_all_is_counted():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(12, 5, bias=False)

        def forward(self, batch, state=None):
            x = batch.inputs["image"].flatten(1)
            picked = x[:, 0] > 0
            return {"x": self.layer(x[picked]), "y": self.layer(x[picked.nonzero()[:, 0]])}, None

    batch = Batch("a", ("x",) * 4, {"image": torch.zeros(4, 3, 2, 2)}, {"label": torch.zeros(4).long()})
    with without_memory() as mode:
        cost = pass_cost(Model(), batch, precision="fp32", mode=mode)
    # Twice forward and the gradient of the weights; the input needs none.
    assert cost.work.flops == 2 * 2 * (2 * 4 * 12 * 5)


@pytest.mark.slow
def test_pre_training_is_planned():
    from allsight.recipes import find_config

    config = replace(find_config("m3i_world")[0], {"model.targets.category.net.num_classes": 12})
    plan = plan_run(config, gpus=1, kind="a100-40g")
    assert plan.best is not None and plan.flops_per_step > 0


def test_recomputation_takes_less_memory_and_more_arithmetic():
    plain = plan_run(_run(BACKBONES["internimage"]), gpus=1, kind="a100-40g")
    again = plan_run(_run(BACKBONES["internimage, recomputed"]), gpus=1, kind="a100-40g")
    assert again.tasks["a"].row_bytes < 0.7 * plain.tasks["a"].row_bytes
    assert 1.1 < again.flops_per_step / plain.flops_per_step < 1.4


def test_shards_divide_the_state():
    plan = plan_run(_run(BACKBONES["internimage"]), gpus=8, kind="h100-80g")
    by = {choice.strategy: choice for choice in plan.choices}
    assert by.keys() == {"ddp", "fsdp"}
    for part in ("parameters", "gradients", "optimiser"):
        whole, own = getattr(by["ddp"].held, part), getattr(by["fsdp"].held, part)
        # Rows are whole, so the first rank has somewhat more than an eighth.
        assert whole / 8 <= own <= 1.1 * whole / 8
    assert plan.best is not None
    assert plan.seconds == 100 * plan.best.step_s


def test_state_of_sgd_is_half_of_adamws():
    config = _run(BACKBONES["resnet"])
    with without_memory():
        model = model_for_tasks(config.model, build_tasks(config.tasks, None))
        adamw = Sizes.of(model, config)
        sgd = Sizes.of(model, replace(config, {"optim": SGD.Config()}))
    assert adamw.moments == 2 * sgd.moments == 2 * sgd.trained
    assert held(sgd, config, "ddp", shards=1, accumulate=1, half=False).optimiser == 4 * sgd.trained


def test_a_model_of_a_billion_parameters_is_planned_without_being_made():
    from allsight.recipes import find_config

    config = replace(find_config("internimage_h_in1k_640")[0], {"model.backbone.remat": "block"})
    with without_memory():
        sizes = Sizes.of(model_for_tasks(config.model, build_tasks(config.tasks, None)), config)
    assert 1.0e9 < sizes.parameters < 1.2e9
    assert sizes.largest_block < 0.1 * sizes.parameters


def test_what_cannot_be_planned_is_said():
    with pytest.raises(ConfigError, match="no machine 'h100'; did you mean 'h100-80g'"):
        plan_run(_run(BACKBONES["resnet"]), gpus=1, kind="h100")
    with pytest.raises(ConfigError) as caught:
        machine("tpu")
    assert str(caught.value).startswith("--kind: no machine 'tpu'; there are: a100-40g, ")
    assert all(str(caught.value).count(kind) == 1 for kind in MACHINES)
    with pytest.raises(ConfigError, match=r"no strategy of .* runs on 7 devices"):
        plan_run(_run(BACKBONES["resnet"]), gpus=7, kind="h100-80g")


class _Net(torch.nn.Module):
    """Two blocks of 100 and 400 weights, and 20 in none."""

    def __init__(self):
        super().__init__()
        self.chain = _Chain(*(torch.nn.Linear(1, n, bias=False) for n in (100, 400)))
        self.head = torch.nn.Linear(10, 2, bias=False)


class _Chain(torch.nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    def blocks_in_order(self):
        return list(self.blocks)


def test_a_sharded_pass_gathers_blocks_and_keeps_parts_of_gradients():
    net = _Net()
    small, large = net.chain.blocks
    sharded = ShardedPass(net, width=4)
    handles = list(sharded.hooks())
    # Of two rows, four ranks have room for four.
    outside, small_size, large_size = 2 * 80, 400, 1600
    small(torch.zeros(1, 1))
    sharded.see(1000)
    # The message in which the small block came stays until the next block has come.
    assert sharded.peak(4, reshards=True) == 1000 + outside + small_size
    large(torch.zeros(1, 1))
    assert sharded.peak(4, reshards=True) == 1000 + outside + 2 * large_size
    assert sharded.peak(4, reshards=False) == 1000 + outside + small_size + 2 * large_size
    sharded.see(5000)
    sharded.begin_backward()
    assert sharded.peak(4, reshards=True) == 5000 + outside + 2 * large_size
    # The next block is coming; the large one's gradient is copied to be sent, when its weights are gone.
    sharded.gradient(large.weight, large_size, now=7000)
    assert sharded.peak(4, reshards=True) == 7000 + outside + small_size + 2 * large_size
    # The message and a fourth of that gradient stay while the small block is there twice,
    sharded.see(9000)
    assert sharded.peak(4, reshards=True) == 9000 + outside + small_size + large_size + large_size // 4
    # and then the message of the small block takes its place.
    sharded.gradient(small.weight, small_size, now=12000)
    assert sharded.peak(4, reshards=True) == 12000 + outside + 2 * small_size + large_size // 4
    assert sharded.peak(2, reshards=True) == 12000 + 80 + 2 * small_size + large_size // 2
    # What is in no block is sent at the end.
    sharded.gradient(net.head.weight, 80, now=20000)
    sharded.end_backward()
    assert sharded.peak(4, reshards=True) == 20000 + 80 + outside + (small_size + large_size) // 4
    for handle in handles:
        handle.remove()


def test_copies_of_messages_are_counted():
    net = _Net()
    passes = [ShardedPass(net, width=4, copies=copies) for copies in (False, True)]
    for sharded in passes:
        handles = list(sharded.hooks())
        net.chain.blocks[1](torch.zeros(1, 1))
        for handle in handles:
            handle.remove()
    # Before the weights are copied out of the buffer, there is a copy of it; after that, the weights.
    assert passes[1].peak(2, reshards=True) - passes[0].peak(2, reshards=True) == 80


@pytest.mark.parametrize(
    ("shape", "shards", "share"),
    [((6, 5), 4, 10), ((96, 2), 64, 4), ((3,), 1024, 1), ((8, 3, 3), 2, 36), ((), 4, 1), ((0, 3), 2, 0)],
)
def test_shares_are_whole_rows(shape, shards, share):
    assert share_of(torch.Size(shape), shards) == share


def _with_experts(strategy, expert_ranks, gpus=4):
    """The plan of a run in float64 with two pairs of layers of four experts, 4 to 5 channels and back."""
    changes = {"parallel.strategy": strategy, "parallel.expert_ranks": expert_ranks}
    plan = plan_run(replace(experts_run(), changes), gpus=gpus, kind="h100-80g", strategies=[strategy])
    return plan, plan.choices[0]


EXPERTS = 2 * 4 * (5 * 4 + 5 + 4 * 5 + 4)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_experts_that_ranks_share_are_counted_once_a_group(strategy):
    alone, shared = (_with_experts(strategy, ranks)[1] for ranks in (1, 2))
    plan, _ = _with_experts(strategy, 2)
    assert plan.sizes.experts == EXPERTS and plan.sizes.parameters > EXPERTS
    # Under fsdp experts are shared by the groups in place of all ranks.
    before = EXPERTS // 4 if strategy == "fsdp" else EXPERTS
    saved = 8 * (before - EXPERTS // 2)
    for part in ("parameters", "gradients", "optimiser", "average"):
        assert getattr(alone.held, part) - getattr(shared.held, part) == saved
    assert shared.evaluation - shared.held.kept >= 8 * EXPERTS


def test_tokens_that_travel_to_experts_are_traffic():
    assert _with_experts("ddp", 1)[0].tasks["a"].row_exchanged == 0
    plan, choice = _with_experts("ddp", 2)
    # Three tokens a row, two experts each, 4 + 5 channels a layer, four layers, forward and backward.
    assert plan.tasks["a"].row_exchanged == 3 * 2 * 9 * 4 * 2 * 8
    _, four = _with_experts("ddp", 4)
    assert four.communication_s > choice.communication_s
    config = replace(experts_run(), {"parallel.strategy": "ddp", "parallel.expert_ranks": 2})
    call = dict(ranks=4, shards=1, accumulate=1, half=False)
    sent = list(messages(plan.sizes, config, "ddp", **call))
    others = plan.sizes.trained - EXPERTS
    # Two groups sum the gradients of the half that a rank holds, all ranks those of all else.
    assert sent == [(4, 2 * 1 / 2 * EXPERTS / 2 * 8), (4, 2 * 3 / 4 * others * 8)]


def test_experts_that_cannot_be_shared_are_not_planned():
    with pytest.raises(ConfigError, match="expert_ranks: 4 ranks do not form groups of 3"):
        _with_experts("ddp", 3)
    with pytest.raises(ConfigError, match="4 experts cannot be shared evenly by 8 ranks"):
        _with_experts("ddp", 8, gpus=8)
    config = replace(_run(BACKBONES["internimage"]), {"parallel.strategy": "ddp", "parallel.expert_ranks": 2})
    with pytest.raises(ConfigError, match="the model has no experts that tokens choose"):
        plan_run(config, gpus=2, kind="h100-80g")


def test_the_search_tries_all_that_leaves_results_as_they_are():
    config = _run(InternImage.Config(channels=32, depths=(2, 1), groups=(1, 2), out_stages=(1,)))
    tried = search_plans(config, gpus=8, kind="h100-80g")
    assert {each.changes for each in tried} == {
        (f"model.backbone.remat={kind}",) for kind in ("none", "selective", "block")
    }
    # All fit, so what repeats nothing is best; each kind that repeats more takes less memory and more time.
    assert tried[0].changes == ("model.backbone.remat=none",)
    by = {each.changes[0].rpartition("=")[2]: each.plan for each in tried}
    rows = [by[kind].tasks["a"].activations(64) for kind in ("none", "selective", "block")]
    assert rows == sorted(rows, reverse=True) and len(set(rows)) == 3
    work = [by[kind].flops_per_step for kind in ("none", "selective", "block")]
    assert work[0] < work[1] < work[2]
