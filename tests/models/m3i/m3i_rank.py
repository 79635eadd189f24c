"""One rank of two: `python m3i_rank.py OUT` with torchrun's environment set."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_m3i import batch_of, model_of
from tiny_m3i_ranks import CASES, half_of

from allsight.types import Batch


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {}
    for name, config in CASES.items():
        model = model_of(config)
        whole = batch_of(rows=8)
        inputs, targets = half_of(whole, rank)
        batch = Batch("t", whole.ids[4 * rank : 4 * rank + 4], inputs, targets, group_size=8, group_ranks=2)
        losses = model(batch)[0]["losses"]
        # As the engine does: each rank's mean counts for its rows, times the number of ranks.
        sum(losses.values()).backward()
        gradients = {}
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                gradients[key] = parameter.grad / 2
        values = torch.stack([loss.detach() for loss in losses.values()])
        dist.all_reduce(values)
        found[name] = {"losses": values / 2, "gradients": gradients}
    if rank == 0:
        torch.save(found, out / "two.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
