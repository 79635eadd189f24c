"""Tiny networks and batches for the tests of M3I, in float64."""

import torch

from allsight.backbones import InternImage, ViT
from allsight.models import M3I
from allsight.types import Batch

VIT = ViT.Config(channels=16, depth=2, heads=2, patch_px=4)
CONV = InternImage.Config(channels=8, depths=(1, 1), groups=(1, 2), later_strides=(2,), out_stages=(0, 1))
CLASSES, WORDS = 3, 11


class Task:
    """What a model asks of a task."""

    num_classes = CLASSES

    class tokenizer:
        vocab_size = WORDS

    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        raise NotImplementedError


def model_of(config, seed=0):
    torch.manual_seed(seed)
    return M3I(config, {"t": Task()}).double().train()


def batch_of(rows=4, size=16, views=2, seed=0, group_size=None, labels=True, captions=True):
    """Random normalised pictures with random crops, labels and captions."""
    rng = torch.Generator().manual_seed(seed)
    images = [torch.randn(rows, 3, size, size, generator=rng, dtype=torch.float64) for _ in range(views)]
    geometry = []
    for _ in range(views):
        corner = torch.rand(rows, 2, generator=rng, dtype=torch.float64) * 20
        sides = 20 + torch.rand(rows, 2, generator=rng, dtype=torch.float64) * 30
        rest = torch.tensor([[70.0, 0.0]], dtype=torch.float64).expand(rows, -1).clone()
        rest[:, 1] = torch.randint(2, (rows,), generator=rng)
        geometry.append(torch.cat([corner, sides, rest], 1))
    targets = {}
    if labels:
        targets["label"] = torch.randint(CLASSES, (rows,), generator=rng)
    if captions:
        lengths = torch.randint(2, 6, (rows,), generator=rng)
        targets["tokens"] = torch.randint(1, WORDS, (rows, 6), generator=rng)
        targets["is_token"] = torch.arange(6) < lengths[:, None]
        targets["tokens"] = targets["tokens"] * targets["is_token"]
        targets["captioned"] = torch.ones(rows, dtype=torch.bool)
    inputs = {
        "views": tuple(images),
        "geometry": tuple(geometry),
        "seed": torch.randint(2**31, (rows,), generator=rng),
    }
    ids = tuple(str(i) for i in range(rows))
    return Batch("t", ids, inputs, targets, group_size=group_size or rows)


def losses_of(model, batch):
    return model(batch)[0]["losses"]
