"""One rank of two: `python m3i_rank.py OUT` with torchrun's environment set."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_m3i import batch_of, model_of
from tiny_m3i_ranks import CASES, UNEVEN, half_of, uneven_batch

from allsight.types import Batch


def half_batch(whole, rank, group_size=8, group_ranks=2):
    rows = slice(4 * rank, 4 * rank + 4)
    return Batch("t", whole.ids[rows], *half_of(whole, rank), group_size=group_size, group_ranks=group_ranks)


def reduced(model):
    """Gradients summed over ranks; what no rank used keeps None."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        used = torch.tensor(float(parameter.grad is not None))
        dist.all_reduce(used)
        if used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for name, config in CASES.items():
        model = model_of(config)
        losses = model(half_batch(batch_of(rows=8), rank))[0]["losses"]
        # As the engine does: each rank's mean counts for its rows, times the number of ranks.
        sum(losses.values()).backward()
        gradients = {key: gradient / 2 for key, gradient in reduced(model).items()}
        values = torch.stack([loss.detach() for loss in losses.values()])
        dist.all_reduce(values)
        found[name] = {"losses": values / 2, "gradients": gradients}
    found["uneven"], slow = uneven(rank)
    everyone = [None, None]
    dist.all_gather_object(everyone, slow)
    if rank == 0:
        torch.save({**found, "slow": everyone}, out / "two.pt")
    dist.barrier()
    dist.destroy_process_group()


def uneven(rank):
    """Two steps of M3I where only rank 0 has labels and captions; gradients, and each rank's slow copies."""
    model = model_of(UNEVEN)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for step in range(2):
        whole = uneven_batch(step)
        batch = half_batch(whole, rank)
        losses = model(batch)[0]["losses"]
        counts = {
            "label": [(whole.targets["label"][rows] >= 0).sum() for rows in (slice(8), rank_rows(rank))],
            "caption": [whole.targets["captioned"][rows].sum() for rows in (slice(8), rank_rows(rank))],
        }
        total = 0
        for name, loss in losses.items():
            every, own = counts.get(name, (torch.tensor(2), torch.tensor(1)))
            total = total + loss * own / every
        optimiser.zero_grad()
        total.backward()
        gradients = reduced(model)
        optimiser.step()
        model.after_step(step)
        assert model.monitors(step) is not None
    slow = {n: p for n, p in model.state_dict().items() if "momentum_encoder" in n or ".net.projector" in n}
    return {"gradients": gradients}, slow


def rank_rows(rank):
    return slice(4 * rank, 4 * rank + 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
