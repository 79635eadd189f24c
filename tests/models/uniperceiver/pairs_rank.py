"""One of two processes that train a Uni-Perceiver on pairs and names: `python pairs_rank.py OUT`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from rank_processes import save_half
from small import make

from allsight.objectives import boltzmann_loss, num_ranks
from allsight.types import Batch, Closed, InBatch, Query, Segment

ROWS, NAMES = 8, 7


class Pairs:
    """Pictures and texts that belong together."""

    def __init__(self, queue):
        self.queue = queue

    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        text = Segment("text", batch.targets["words"], batch.targets["is_word"])
        return Query((Segment("image", batch.inputs["image"]),), InBatch((text,)))


class Names(Pairs):
    """The same pictures among seven names."""

    def cast(self, batch):
        ids = torch.arange(NAMES * 2).view(NAMES, 2)
        names = Closed("names", (Segment("text", ids),))
        return Query((Segment("image", batch.inputs["image"]),), names, None, batch.targets["label"])


def made(queue):
    model = make(tasks={"pairs": Pairs(queue), "names": Names(0)}, shard_above=1)
    return model.train()


def pairs(begin, end, *, task="pairs", group_ranks=1):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64)[begin:end]
    words = torch.randint(22, (ROWS, 5), generator=generator)[begin:end]
    lengths = torch.randint(2, 6, (ROWS,), generator=generator)[begin:end]
    targets = {
        "words": words,
        "is_word": torch.arange(5) < lengths[:, None],
        "label": torch.arange(begin, end) % NAMES,
    }
    ids = tuple(map(str, range(begin, end)))
    size = (end - begin) * group_ranks
    return Batch(task, ids, {"image": image}, targets, group_size=size, group_ranks=group_ranks)


def outcome(rows, share, *, group_ranks=1):
    """Two steps: losses scaled as the engine does, gradients, the queue, and names that this rank encoded."""
    model = made(queue=12)
    encoded = []
    forward = model.encoder.forward

    def counted(segments, purpose, read=None):
        if purpose.is_target and purpose.task == "names":
            encoded.append(len(segments[0].content))
        return forward(segments, purpose, read)

    model.encoder.forward = counted
    total = torch.zeros((), dtype=torch.float64)
    for step in range(2):
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for task in ("pairs", "names"):
            outputs, _ = model(pairs(rows.start, rows.stop, task=task, group_ranks=group_ranks))
            for name in ("logits", "logits_back"):
                if name in outputs:
                    loss = boltzmann_loss(
                        outputs[name],
                        outputs["labels"],
                        excluded=outputs.get("excluded"),
                        label_smoothing=0.1,
                    )
                    total = total + loss
        (total * share * num_ranks()).backward()
        model.after_step(step)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    queue = model.queues["pairs"]["queries"].negatives().clone()
    return {"loss": total.detach(), "gradients": gradients, "queue": queue, "encoded": encoded[0]}


if __name__ == "__main__":
    save_half(outcome, ROWS, Path(sys.argv[1]))
