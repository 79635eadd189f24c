"""One of two processes that share the experts of a Uni-Perceiver: `python experts_rank.py`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))

from pairs_rank import ROWS, Names, Pairs, pairs
from small import caption, continuation, experts, make, picture
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from allsight.layers.expert_split import split_experts, whole_experts
from allsight.objectives import boltzmann_loss
from allsight.types import Segment

ROUTINGS = {
    "token": dict(routing="token", balance_loss=0.1, z_loss=0.1),
    "context": dict(routing="context", capacity=0.8, bias_step=0.01, every=2),
}


def made(settings):
    tasks = {"pairs": Pairs(0), "names": Names(0)}
    return make(tasks=tasks, shard_above=1, random_frames=False, experts=experts(**settings))


def step(model, rank):
    """Losses of this rank's rows; the gradient of all ranks, whole."""
    model.train()
    losses = []
    for task in ("pairs", "names"):
        own = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
        outputs, _ = model(pairs(own.start, own.stop, task=task, group_ranks=2 if task == "pairs" else 1))
        losses.append(boltzmann_loss(outputs["logits"], outputs["labels"]))
        losses += outputs.get("penalties", {}).values()
    torch.stack(losses).sum().backward()
    model.after_step(0)
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            found[name] = gradient.full_tensor()
        elif gradient is not None:
            dist.all_reduce(gradient)
            found[name] = gradient
    return torch.stack(losses).detach(), found


def main() -> None:
    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    for name, settings in ROUTINGS.items():
        whole, split = made(settings), made(settings)
        layers = split_experts(split, mesh)
        assert len(layers) == (8 if name == "token" else 4)
        for expected, found in zip(step(whole, rank), step(split, rank), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        whole.eval()
        split.eval()
        with whole_experts(layers), torch.no_grad():
            # Ranks write different numbers of texts.
            for seed in range(1 + rank):
                empty = Segment("text", torch.empty(3, 0, dtype=torch.int64), causal=True)
                query = caption(empty, before=(picture(seed=seed),), continuation=continuation(beam=2))
                a, b = (model.answer(query)["tokens"] for model in (whole, split))
                assert torch.equal(a, b)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
