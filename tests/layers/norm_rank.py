"""One of two processes that normalise unequal parts of a batch: `python norm_rank.py OUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from allsight.layers import SyncBatchNormLast

SPLIT = 2  # rows of the first rank; the second has the rest


def batch():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(5, 3, 4, 6) * 2 + 100, draw(5, 3, 4, 6)


def outcome(norm, x, weights):
    """Output, gradients and statistics after a step."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (y * weights).sum().backward()
    grads = {"weight": norm.weight.grad, "bias": norm.bias.grad}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(norm.named_buffers())}


def start(cls):
    norm = cls(6).double()
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    return norm


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rows = slice(None, SPLIT) if dist.get_rank() == 0 else slice(SPLIT, None)
    x, weights = batch()
    torch.save(outcome(start(SyncBatchNormLast), x[rows], weights[rows]), out / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
