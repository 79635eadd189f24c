"""Three toy tasks and their models, as different from each other as the contracts allow.

A plain module beside the tests: put its folder on `sys.path` and `import toys`; worker processes find it too.
All is generated from (seed, index), learnt within 50 steps, under 50,000 parameters, independent of the batch
and free of dropout.

- `ToyDots` with `ToyBackbone`: classification in one picture, for `MultiHead`.
- `ToyCaptioning` with `ToyGeneralist`: words of a caption, cast to a query over the vocabulary.
- `ToyDrive` with `ToyDriver`: two cameras in a stream, with state; the answer depends on the frame before.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.models import TaskModel
from allsight.tasks import Task
from allsight.tasks.classification import Classification
from allsight.tasks.metrics import ClassificationScores
from allsight.types import (
    Batch,
    CameraRig,
    ClassScores,
    FeatureSpec,
    Image,
    MultiCameraBatch,
    Query,
    Rig,
    Sample,
    Segment,
    Text,
    TextAnswer,
    Vocabulary,
)

_SPLITS = {"train": 0, "val": 1}


def _rng(*key):
    return np.random.default_rng(key)


class DotsReader:
    """Grey noise with dots of one colour; the colour is the class."""

    classes = ("red", "green", "blue")

    def __init__(self, length, size_px, seed):
        self.length, self.size_px, self.seed = length, size_px, seed
        self.labels = tuple(index % 3 for index in range(length))

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = _rng(10, self.seed, index)
        pixels = rng.integers(0, 120, (3, self.size_px, self.size_px), dtype=np.uint8)
        dots = rng.random((self.size_px, self.size_px)) < 0.1
        pixels[self.labels[index]][dots] = 255
        return Sample.of_image(f"dots/{index}", torch.from_numpy(pixels), {"label": self.labels[index]})


class ToyDots(Classification):
    """Which colour the dots have; loss, metric and the rest are those of classification."""

    class Config(Classification.Config):
        length: int = 120
        size_px: int = 16
        batch_size: int = 12

    @property
    def classes(self):
        return DotsReader.classes

    def reader(self, split):
        return DotsReader(self.config.length, self.config.size_px, _SPLITS[split])

    def transform(self, split):
        return Task.transform(self, split)


class ToyBackbone(Backbone):
    """Two strided convolutions."""

    def __init__(self, config):
        super().__init__(config)
        self.feature_specs = (FeatureSpec(16, 4), FeatureSpec(32, 8))
        self.first = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.second = nn.Conv2d(16, 32, kernel_size=2, stride=2)

    def forward(self, images):
        fine = F.gelu(self.first(self.normalise(images)))
        return fine, F.gelu(self.second(fine))


PHRASES = {
    (1, 0, 0): "a warm red",
    (0, 1, 0): "green",
    (0, 0, 1): "very deep and dark blue",
    (1, 1, 1): "a pale white wall",
}
"""Colour -> caption; two begin alike, so that later words need the picture too."""
PAD, START, END = 0, 1, 2
WORDS = ("<pad>", "<start>", "<end>", *sorted({word for text in PHRASES.values() for word in text.split()}))
MAX_WORDS = 6


class ColourReader:
    """Noise of one colour, with a caption of one to five words."""

    def __init__(self, length, seed):
        self.length, self.seed = length, seed

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = _rng(20, self.seed, index)
        colour = list(PHRASES)[rng.integers(len(PHRASES))]
        light = 150 * np.array(colour).reshape(3, 1, 1)
        pixels = (light + rng.integers(0, 100, (3, 16, 16))).astype(np.uint8)
        return Sample.of_image(
            f"colour/{index}", torch.from_numpy(pixels), {"caption": Text(PHRASES[colour])}
        )


def tokenise(sample, rng):
    """Caption to token ids, closed by <end>."""
    words = sample.targets["caption"].string.split()
    tokens = torch.tensor([*(WORDS.index(word) for word in words), END])
    targets = {**sample.targets, "caption": Text(" ".join(words), tokens)}
    return Sample(sample.id, sample.inputs, targets)


class ExactMatch:
    """Share of captions that are right to the last word."""

    def __init__(self):
        self.hits, self.count = 0, 0

    def update(self, answers, batch):
        truth = [_text(row) for row in batch.targets["words"].tolist()]
        self.hits += sum(answer.text == text for answer, text in zip(answers, truth, strict=True))
        self.count += len(answers)

    def merge(self, other):
        self.hits, self.count = self.hits + other.hits, self.count + other.count

    def compute(self):
        return {"exact": self.hits / self.count if self.count else math.nan}

    def tables(self):
        return {}


class ToyCaptioning(Task):
    """Words of a caption, one after the other, all in one pass. Its loss is a mean over words."""

    counted: ClassVar[tuple[str, ...]] = ("words",)

    class Config(Task.Config):
        length: int = 200
        batch_size: int = 12

    def reader(self, split):
        return ColourReader(self.config.length, _SPLITS[split])

    def transform(self, split):
        return super().transform(split) if split == "predict" else tokenise

    def collate(self, samples):
        targets = {}
        if all("caption" in sample.targets for sample in samples):
            # One fixed length: the longest caption of a micro-batch would depend on how batches are split.
            words = torch.full((len(samples), MAX_WORDS), PAD)
            for row, sample in enumerate(samples):
                tokens = sample.targets["caption"].tokens
                words[row, : len(tokens)] = tokens
            targets = {"words": words}
        images = torch.stack([sample.image.pixels for sample in samples])
        return Batch(self.name, tuple(sample.id for sample in samples), {"image": images}, targets)

    def cast(self, batch):
        image = Segment("image", batch.inputs["image"])
        start = torch.full((len(batch), 1), START, device=image.content.device)
        words = batch.targets.get("words")
        if words is None:
            text = Segment("text", start, torch.ones_like(start, dtype=torch.bool), causal=True)
            return Query((image, text), Vocabulary(), read=1)
        is_word = words != PAD
        text = Segment("text", torch.cat([start, words[:, :-1]], dim=1), is_word, causal=True)
        return Query((image, text), Vocabulary(), read=1, labels=words.masked_fill(~is_word, -100))

    def loss(self, outputs, batch):
        logits, labels = outputs["logits"].flatten(0, 1), outputs["labels"].flatten()
        total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return {"words": total / max(self.counts(batch)["words"], 1.0)}

    def counts(self, batch):
        return {"words": float((batch.targets["words"] != PAD).sum())}

    def decode(self, outputs, batch):
        log_p, words = outputs["logits"].detach().log_softmax(dim=-1).max(dim=-1)
        answers = []
        for id, row, sure in zip(batch.ids, words.tolist(), log_p.tolist(), strict=True):
            length = row.index(END) + 1 if END in row else len(row)
            answers.append(TextAnswer(id, self.name, _text(row), sum(sure[:length])))
        return answers

    def truth(self, batch):
        words = batch.targets["words"].tolist()
        return [TextAnswer(id, self.name, _text(row)) for id, row in zip(batch.ids, words, strict=True)]

    def metric(self):
        return ExactMatch()

    def main_metric(self):
        return "exact"


def _text(tokens):
    length = tokens.index(END) if END in tokens else len(tokens)
    return " ".join(WORDS[token] for token in tokens[:length])


class ToyGeneralist(TaskModel):
    """A transformer that encodes the segments of a query and compares with its word embeddings."""

    class Config(TaskModel.Config):
        width: int = 32
        depth: int = 2
        heads: int = 2
        patch_px: int = 8
        max_tokens: int = 16

    def __init__(self, config, tasks):
        super().__init__(config, tasks)
        self.tasks = dict(tasks)
        width = config.width
        self.patches = nn.Conv2d(3, width, kernel_size=config.patch_px, stride=config.patch_px)
        self.words = nn.Embedding(len(WORDS), width)
        self.places = nn.ParameterDict(
            {kind: nn.Parameter(0.1 * torch.randn(config.max_tokens, width)) for kind in ("image", "text")}
        )
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, batch, state=None):
        query = self.tasks[batch.task].cast(batch)
        assert isinstance(query.among, Vocabulary)
        assert query.read is not None
        parts = [self._embed(segment) for segment in query.inputs]
        x = torch.cat(parts, dim=1)
        allowed = _may_see(query.inputs, parts)
        for block in self.blocks:
            x = block(x, allowed)
        first = sum(part.shape[1] for part in parts[: query.read])
        read = self.norm(x[:, first : first + parts[query.read].shape[1]])
        logits = F.normalize(read, dim=-1) @ F.normalize(self.words.weight, dim=-1).T * self.log_scale.exp()
        outputs = {"logits": logits}
        if query.labels is not None:
            outputs["labels"] = query.labels
        return outputs, None

    def after_step(self, step):
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100.0))

    def _embed(self, segment):
        if segment.modality == "image":
            pixels = segment.content.to(self.patches.weight.dtype) / 127.5 - 1
            tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        else:
            tokens = self.words(segment.content)
        return tokens + self.places[segment.modality][: tokens.shape[1]]


class _Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, allowed):
        b, n, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
        x = x + self.mixed(seen.transpose(1, 2).reshape(b, n, c))
        return x + self.mlp(self.norms[1](x))


def _may_see(segments, parts):
    """[b, query, key]: real keys only; causal ones only from themselves and later causal ones."""
    real, causal = [], []
    for segment, part in zip(segments, parts, strict=True):
        rows, length = part.shape[:2]
        everywhere = torch.ones(rows, length, dtype=torch.bool, device=part.device)
        real.append(everywhere if segment.mask is None else segment.mask)
        causal.append(torch.full((length,), segment.causal, device=part.device))
    is_real, is_causal = torch.cat(real, dim=1), torch.cat(causal)
    place = torch.arange(len(is_causal), device=is_causal.device)
    earlier = place[:, None] >= place[None, :]
    open_to = ~is_causal[None, :] | (is_causal[:, None] & earlier)
    return open_to[None] & is_real[:, None, :]


class DriveReader:
    """Drives of different lengths with two 8 x 8 cameras, laid end to end.

    In each frame either the left or the right half of a camera is lit. The class is what the first camera
    showed one frame ago (0 at a start) and what the second shows now. The car moves along x.
    """

    def __init__(self, sequences, seed):
        self.sequences, self.seed = tuple(sequences), seed
        self._first = np.cumsum([0, *self.sequences])

    def __len__(self):
        return int(self._first[-1])

    def __getitem__(self, index):
        drive = int(np.searchsorted(self._first, index, side="right")) - 1
        frame = index - int(self._first[drive])
        signs = _rng(30, self.seed, drive).integers(0, 2, (self.sequences[drive], 2))
        moves = _rng(31, self.seed, drive).uniform(0.2, 1.0, self.sequences[drive])
        noise = _rng(32, self.seed, index)
        images = []
        for camera in range(2):
            pixels = noise.integers(0, 40, (3, 8, 8), dtype=np.uint8)
            half = slice(4, 8) if signs[frame, camera] else slice(0, 4)
            pixels[:, :, half] += 200
            images.append(Image(torch.from_numpy(pixels)))
        world = torch.eye(4)
        world[0, 3] = float(moves[1 : frame + 1].sum())
        img_from_ref = torch.stack([torch.eye(3, 4), torch.eye(3, 4).roll(1, dims=0)])
        rig = Rig(tuple(images), img_from_ref, torch.eye(4), world, 0.5 * frame, ("front", "back"))
        before = int(signs[frame - 1, 0]) if frame else 0
        targets = {
            "label": 2 * before + int(signs[frame, 1]),
            "travelled_m": float(moves[frame]) if frame else 0.0,
        }
        return Sample(f"drive{drive}/{frame}", {"rig": rig}, targets)


class ToyDrive(Task):
    """A class per frame of a stream, and how far the car came since the frame before."""

    class Config(Task.Config):
        num_drives: int = 24
        batch_size: int = 12

    @property
    def classes(self):
        return ("left-left", "left-right", "right-left", "right-right")

    def reader(self, split):
        lengths = [5 + 3 * drive % 7 for drive in range(self.config.num_drives)]
        return DriveReader(lengths, _SPLITS[split])

    def collate(self, samples):
        rigs = [sample.inputs["rig"] for sample in samples]
        images = torch.stack([torch.stack([image.pixels for image in rig.images]) for rig in rigs])
        rig = CameraRig(
            torch.stack([rig.img_from_ref for rig in rigs]),
            torch.stack([rig.ego_from_ref for rig in rigs]),
            torch.stack([rig.world_from_ref for rig in rigs]),
            torch.tensor([rig.time_s for rig in rigs]),
        )
        targets = {}
        if all(sample.targets for sample in samples):
            targets = {
                "label": torch.tensor([sample.targets["label"] for sample in samples]),
                "travelled_m": torch.tensor([sample.targets["travelled_m"] for sample in samples]),
            }
        ids = tuple(sample.id for sample in samples)
        return Batch(self.name, ids, {"rig": MultiCameraBatch(images, rig)}, targets)

    def loss(self, outputs, batch):
        wanted = batch.targets["travelled_m"].to(outputs["travelled_m"])
        return {
            "cross_entropy": F.cross_entropy(outputs["logits"], batch.targets["label"]),
            "travel_l2": (outputs["travelled_m"] - wanted).square().mean(),
        }

    def decode(self, outputs, batch):
        scores = outputs["logits"].detach().float().softmax(dim=1).cpu().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, scores, strict=True)
        ]

    def truth(self, batch):
        rows = F.one_hot(batch.targets["label"].cpu(), 4).float().numpy()
        return [
            ClassScores(id, self.name, row, self.classes) for id, row in zip(batch.ids, rows, strict=True)
        ]

    def metric(self):
        return ClassificationScores((), 4, self.classes)

    def main_metric(self):
        return "top1"


class ToyDriver(TaskModel):
    """A gated memory of one bird's-eye-view vector, carried along with the pose it was seen from."""

    class Config(TaskModel.Config):
        width: int = 32

    def __init__(self, config, tasks):
        super().__init__(config, tasks)
        width = config.width
        self.see = nn.Linear(2 * 3 * 8 * 8, width)
        self.gate = nn.Linear(2 * width, width)
        self.answer = nn.Linear(2 * width + 1, 4)
        self.travel = nn.Linear(width + 1, 1)
        nn.init.constant_(self.gate.bias, -2.0)

    def forward(self, batch: Batch, state: dict[str, Tensor] | None = None):
        cameras = batch.inputs["rig"]
        dtype = self.see.weight.dtype
        bev = F.gelu(self.see((cameras.images.to(dtype) / 127.5 - 1).flatten(1)))
        world = cameras.rig.world_from_ref
        if state is None:
            before, moved = torch.zeros_like(bev), bev.new_zeros(len(bev), 1)
        else:
            # Rows that start hold arbitrary values, so they are replaced and not multiplied by zero.
            starts = batch.starts[:, None]
            before = torch.where(starts, 0.0, state["bev"])
            moved = torch.where(starts, 0.0, (world - state["world_from_ref"])[:, 0, 3:].to(dtype))
        keep = self.gate(torch.cat([bev, before], dim=1)).sigmoid()
        fused = keep * before + (1 - keep) * bev
        outputs = {
            "logits": self.answer(torch.cat([fused, before, moved], dim=1)),
            "travelled_m": self.travel(torch.cat([fused, moved], dim=1))[:, 0],
        }
        return outputs, {"bev": fused.detach(), "world_from_ref": world}
