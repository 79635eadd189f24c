"""One of several processes that share the experts of a layer: `python expert_rank.py OUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from allsight.layers import ExpertLinear, RunMix, TokenMix, choose_experts, limit_load
from allsight.layers.expert_split import split_experts, whole_experts

EXPERTS, CHANNELS, OUT = 8, 6, 5

CASES = {
    "even": {},
    "one expert a token": {"k": 1},
    "uneven loads": {"liked": {0: 9.0, 1: 6.0}},
    "experts that nobody chose": {"liked": {3: -99.0, 4: -99.0}},
    "all on the last rank": {"liked": {6: 99.0, 7: 99.0}},
    "a rank without tokens": {"tokens": (0, 3, 4, 2)},
    "nobody has tokens": {"tokens": (0, 0, 0, 0)},
    "capacity": {"liked": {0: 3.0}, "capacity": 1.0},
    "capacity that lets nearly nobody in": {"capacity": 0.01},
    "frozen tokens": {"frozen": True},
}
"""What is different in each; tokens: of each rank, liked: added to the logits of an expert."""


def layer():
    torch.manual_seed(0)
    made = ExpertLinear(CHANNELS, OUT, EXPERTS, per_token=True).double()
    torch.nn.init.normal_(made.bias)
    return made


def outcome(made, rank, *, k=2, tokens=(3, 4, 2, 5), liked=(), capacity=None, frozen=False):
    """Output and gradients of tokens and logits of one rank; those of weights are summed up in the layer."""
    generator = torch.Generator().manual_seed(rank)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x, logits = draw(1, tokens[rank], CHANNELS), draw(1, tokens[rank], EXPERTS)
    for expert, more in dict(liked).items():
        logits[..., expert] += more
    x.requires_grad_(not frozen)
    logits.requires_grad_()
    mix = TokenMix(*choose_experts(logits, k=k))
    if capacity is not None:
        mix = limit_load(mix, EXPERTS, capacity)
    y = made(x, mix)
    (y * draw(*y.shape)).sum().backward()
    return {"y": y.detach(), "logits": logits.grad} | ({} if frozen else {"x": x.grad})


def refusal(call):
    """What is said."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    world, rank = dist.get_world_size(), dist.get_rank()
    found = {}
    for copies in (1, 2) if world > 2 else (1,):
        mesh = init_device_mesh("cpu", (copies, world // copies))
        for name, case in CASES.items():
            made = layer()
            layers = split_experts(made, mesh)
            assert layers == (made,) and made.weight.to_local().shape[0] == EXPERTS * copies // world
            mine = outcome(made, rank, **case)
            for parameter, gradient in ((n, p.grad) for n, p in made.named_parameters()):
                assert isinstance(gradient, DTensor)
                dist.all_reduce(gradient.to_local(), group=mesh.get_group(0))
                mine[f"{parameter} gradient"] = gradient.full_tensor()
            mine["weight"] = made.state_dict()["weight"].full_tensor()
            with whole_experts(layers), torch.no_grad():
                # Ranks may use the layer as often as they like.
                for _ in range(rank):
                    again = TokenMix(torch.zeros(1, 2, 1, dtype=torch.int64), torch.ones(1, 2, 1))
                    made(torch.zeros(1, 2, CHANNELS).double(), again)
            found[copies, name] = mine
    runs = RunMix(((0, 1),), torch.ones(1, EXPERTS))
    found["runs"] = refusal(lambda: made(torch.zeros(1, 1, CHANNELS).double(), runs))
    found["uneven"] = refusal(lambda: split_experts(ExpertLinear(3, 3, 7, per_token=True), mesh))
    merging = ExpertLinear(3, 3, 7)
    assert split_experts(merging, mesh) == () and not isinstance(merging.weight, DTensor)
    torch.save(found, out / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
