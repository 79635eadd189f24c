"""Four tasks, one encoder: each gets clearly below what knowing nothing costs (learning test, seconds)."""

import math

import torch

from allsight.models import UniPerceiver
from allsight.objectives import boltzmann_loss
from allsight.types import Batch, Closed, InBatch, Query, Segment, Vocabulary

SHAPES, COLOURS, SIDE = 4, 4, 16
SPE, END = 8, 9  # words: four colours, four shapes, <SPE>, the end
STEPS = 160


def scene(rows, generator):
    """A patch pattern in one of four colours; words are `colour shape`."""
    shape = torch.randint(SHAPES, (rows,), generator=generator)
    colour = torch.randint(COLOURS, (rows,), generator=generator)
    masks = torch.zeros(SHAPES, SIDE, SIDE)
    masks[0, 2:14, 2:14] = 1
    masks[1, 6:10] = 1
    masks[2, :, 6:10] = 1
    masks[3] = (
        torch.eye(SIDE).unfold(0, 1, 1)[..., 0] + torch.eye(SIDE).roll(1, 0) + torch.eye(SIDE).roll(-1, 0)
    )
    paints = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    image = masks[shape][:, None] * paints[colour][:, :, None, None]
    words = torch.stack([colour, 4 + shape, torch.full_like(shape, END)], dim=1)
    return image + 0.1 * torch.randn(image.shape, generator=generator), shape, words


class Toy:
    """Casts a batch of scenes as one of four questions."""

    def __init__(self, kind):
        self.kind = kind

    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        image, words = Segment("image", batch.inputs["image"]), batch.targets["words"]
        if self.kind == "class":
            names = Closed("shapes", (Segment("text", 4 + torch.arange(SHAPES)[:, None]),))
            return Query((image,), names, None, batch.targets["shape"])
        if self.kind == "caption":
            return Query((image, Segment("text", words, causal=True)), Vocabulary(), 1, words)
        if self.kind == "retrieval":
            return Query((image,), InBatch((Segment("text", words),)))
        hidden = words.clone()
        hidden[:, 0] = SPE
        labels = torch.where(hidden == SPE, words, -100)
        return Query((image, Segment("text", hidden)), Vocabulary(), 1, labels)


def test_every_loss_falls_below_the_uniform_level(without_shape_checks):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    tasks = {kind: Toy(kind) for kind in ("class", "caption", "retrieval", "masked")}
    config = UniPerceiver.Config.variant(
        "micro", depth=2, channels=64, heads=4, hidden=128, image_px=SIDE, vocab_size=10, spe_id=SPE
    )
    model = UniPerceiver(config, tasks).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    levels = {"class": SHAPES, "caption": 10, "retrieval": 16, "masked": 10}
    last = {}
    for step in range(STEPS):
        kind = list(tasks)[step % 4]
        image, shape, words = scene(16, generator)
        ids = tuple(map(str, range(16)))
        batch = Batch(kind, ids, {"image": image}, {"shape": shape, "words": words}, group_size=16)
        outputs, _ = model(batch)
        loss = boltzmann_loss(outputs["logits"], outputs["labels"], excluded=outputs.get("excluded"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step)
        last.setdefault(kind, []).append(loss.item())
    for kind, values in last.items():
        assert sum(values[-8:]) / 8 < 0.5 * math.log(levels[kind]), (kind, values[-8:])


def test_temperature_stays_in_bounds_and_still_learns_there():
    """The bound is kept after the step, so a gradient from inside is there at the bound."""
    tasks = {"class": Toy("class")}
    config = UniPerceiver.Config.variant(
        "micro", depth=1, channels=16, heads=2, hidden=16, image_px=SIDE, vocab_size=10, spe_id=SPE
    )
    model = UniPerceiver(config, tasks).train()
    scale = model.log_scales["class"]
    scale.data.fill_(math.log(100.0) + 1.0)
    model.after_step(0)
    assert scale.item() <= math.log(100.0) + 1e-6
    image, shape, words = scene(4, torch.Generator().manual_seed(0))
    batch = Batch("class", tuple("abcd"), {"image": image}, {"shape": shape, "words": words})
    outputs, _ = model(batch)
    boltzmann_loss(outputs["logits"], outputs["labels"]).backward()
    assert scale.grad.abs() > 0
