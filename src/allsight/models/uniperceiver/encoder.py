"""The one encoder of queries and candidates: tokenizers, trunk, output projection.

Letters: b rows, t tokens, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from allsight.config import Config, ConfigError, Variants
from allsight.layers.experts import ExpertLinear
from allsight.models.uniperceiver.conditions import Conditions, Purpose, find_conditions
from allsight.models.uniperceiver.prompts import PromptSettings
from allsight.models.uniperceiver.router import ExpertSettings
from allsight.models.uniperceiver.sequence import Layout, first_positions, lay_out
from allsight.models.uniperceiver.tokenizers import NORM_EPS, TextTokenizer, VisionTokenizer, as_pixels
from allsight.models.uniperceiver.trunk import Trunk
from allsight.types import Segment

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VARIANTS: Variants = {
    "micro": dict(
        channels=128,
        depth=4,
        heads=4,
        hidden=512,
        drop_path=0.0,
        layer_scale=None,
        stem="conv",
        patch_px=8,
        image_px=64,
        max_tokens=128,
    ),
    **{
        name: dict(
            channels=channels,
            depth=depth,
            heads=channels // 64,
            hidden=4 * channels,
            drop_path=0.1,
            layer_scale=1e-3,
            stem="patch",
            patch_px=16,
            image_px=224,
            max_tokens=512,
        )
        for name, channels, depth in (("base", 768, 12), ("large", 1024, 24))
    },
}


class EncoderSettings(Config):
    """Sizes and habits of the encoder.

    Attributes:
        channels: Width of the tokens.
        depth: Blocks.
        heads: Attention heads.
        hidden: Width of the MLPs.
        drop_path: Chance that a sample loses a branch in training, the same in all blocks.
        layer_scale: First value of the factor on each branch; None has no factor.
        experts: Conditional mixture of experts; None is dense.
        vocab_size: Ids of the texts; None takes them from the tasks' tokenizer.
        spe_id: Id of <SPE>; None takes it from the tokenizer, else it is the last.
        word_end: Id behind each word of the vocabulary where words are candidates; None has none. Published
            weights learnt with one (that of CLIP's vocabulary is 49407).
        max_tokens: Longest text.
        text_types: Rows of the type embedding of texts; published weights have 2, of which one is used.
        stem: One convolution as large as a patch, or small ones for small pictures.
        patch_px: Side of a patch.
        image_px: Side of the picture the model is made for; others lie on the same extent.
        position_scale: Factor on the numbers of rows and columns: 160 / 224 where training went on at 224 px.
        max_frames: Frames of a clip.
        random_frames: In training, clips and pictures begin at a random frame number.
        mean, std: Of the colour channels, for pictures in uint8.
        published: Keep parameters that published weights have and no computation uses.
        prompts: Train only prompts, norms and heads; None trains everything.
    """

    channels: int = Field(default=768, ge=4)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=12, ge=1)
    hidden: int = Field(default=3072, ge=1)
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    layer_scale: float | None = 1e-3
    experts: ExpertSettings | None = None
    vocab_size: int | None = Field(default=None, ge=2)
    spe_id: int | None = Field(default=None, ge=0)
    word_end: int | None = Field(default=None, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    text_types: int = Field(default=1, ge=1)
    stem: Literal["patch", "conv"] = "patch"
    patch_px: int = Field(default=16, ge=1)
    image_px: int = Field(default=224, ge=1)
    position_scale: float = Field(default=1.0, gt=0)
    max_frames: int = Field(default=8, ge=1)
    random_frames: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    published: bool = False
    prompts: PromptSettings | None = None


class Encoder(nn.Module):
    """Sequences of any modalities to features.

    Args:
        config: Its settings, with `vocab_size` and `spe_id` filled in.
        tasks: Names of the tasks, for `routing="task"`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderSettings, tasks: Sequence[str] = ()) -> None:
        super().__init__()
        assert config.vocab_size is not None
        if config.prompts is not None and config.experts is not None and config.experts.looks_at_data:
            raise ConfigError(
                f"config.model.prompts: not with experts.routing={config.experts.routing}, where prompts "
                "have no experts of their own; take attribute, modality or task"
            )
        channels = config.channels
        spe_id = config.vocab_size - 1 if config.spe_id is None else config.spe_id
        self.word_end = config.word_end
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.text = TextTokenizer(
            config.vocab_size,
            channels,
            max_tokens=config.max_tokens,
            spe_id=spe_id,
            norm=self.norm,
            num_types=config.text_types,
            spe_bias=config.prompts is not None and config.prompts.spe,
        )
        if config.prompts is not None and config.prompts.norms:
            self.vision_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.vision = VisionTokenizer(
            channels,
            patch_px=config.patch_px,
            image_px=config.image_px,
            position_scale=config.position_scale,
            max_frames=config.max_frames,
            random_frames=config.random_frames,
            stem=config.stem,
            norm=getattr(self, "vision_norm", self.norm),
            num_types=int(config.published),
        )
        self.trunk = Trunk(
            config.depth,
            channels,
            heads=config.heads,
            hidden=config.hidden,
            drop_path=config.drop_path,
            layer_scale=config.layer_scale,
            experts=config.experts,
            tasks=tasks,
            published=config.published,
            prompts=config.prompts,
        )
        self.output_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.output = nn.Linear(channels, channels)
        # Not saved: they are settings, and published weights have none. Hence real even on the meta device.
        self.register_buffer("mean", torch.tensor(config.mean, device="cpu")[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std, device="cpu")[:, None, None], persistent=False)
        self._initialise()

    def forward(
        self, segments: Sequence[Segment], purpose: Purpose, read: int | None = None
    ) -> Float[Tensor, "b *t c"]:
        """Projected features: of the <SPE> in front, or of every position of segment `read`."""
        tokens, layout = self.encode(segments, purpose, read)
        first, end = layout.read
        read_out = tokens[:, 0] if read is None else tokens[:, first:end]
        return self.project(read_out)

    def encode(
        self, segments: Sequence[Segment], purpose: Purpose, read: int | None = None
    ) -> tuple[Float[Tensor, "b t c"], Layout]:
        """What the trunk makes of a sequence, and where things are in it."""
        x, layout = self.embed(segments, read)
        return self.trunk(x, layout.mask, self.conditions(layout, purpose, x)), layout

    def embed(
        self, segments: Sequence[Segment], read: int | None = None
    ) -> tuple[Float[Tensor, "b t c"], Layout]:
        """Tokens of a sequence before the trunk.

        Raises:
            ValueError: A modality that the model has no tokenizer for.
        """
        firsts = first_positions(segments)
        parts = [self._tokens(segment, first) for segment, first in zip(segments, firsts, strict=True)]
        layout = lay_out(segments, [part.shape[1] for part in parts], read)
        if len(layout.segments) > len(segments):
            ids = torch.full_like(layout.segments[-1].content, self.text.spe_id)
            parts.append(self.text(ids))
        return torch.cat([self.text.prefix(len(parts[0])).to(parts[0]), *parts], dim=1), layout

    def conditions(self, layout: Layout, purpose: Purpose, x: Tensor) -> Conditions:
        """What experts are chosen by."""
        lengths = [layout.lengths[0] + 1, *layout.lengths[1:]]
        tokens = {"is_open": layout.is_open, "is_real": layout.real}
        return find_conditions(layout.segments, lengths, purpose, **tokens, device=x.device)

    def target_parameters(self) -> list[nn.Parameter]:
        """What features of candidates depend on."""
        prompts = self.trunk.prompts
        for_queries = prompts is not None and prompts.sides == "queries"
        return [
            p for p in self.parameters() if not (for_queries and prompts is not None and p is prompts.tokens)
        ]

    def project(self, x: Float[Tensor, "*lead c"]) -> Float[Tensor, "*lead c"]:
        """Features of the trunk as they are compared (before they are normalised)."""
        return self.output(self.output_norm(x))

    def _tokens(self, segment: Segment, first: int | Int64[Tensor, " b"]) -> Float[Tensor, "b t c"]:
        if segment.modality == "text":
            return self.text(segment.content, first, segment.mask)
        if segment.modality in ("image", "video"):
            return self.vision(as_pixels(segment.content, self.mean, self.std))
        raise ValueError(f"no tokenizer for modality '{segment.modality}'; expected text, image or video")

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if isinstance(patches := self.vision.patches, nn.Conv2d):
            # The linear layer on flattened patches that it is.
            bound = math.sqrt(6 / (patches.weight[0].numel() + patches.out_channels))
            nn.init.uniform_(patches.weight, -bound, bound)
            assert patches.bias is not None
            nn.init.zeros_(patches.bias)
        # Queries, keys and values are three layers in one matrix.
        for module in self.trunk.modules():
            qkv = getattr(module, "qkv", None)
            if isinstance(qkv, nn.Linear | ExpertLinear):
                bound = math.sqrt(6 / (2 * qkv.weight.shape[-1]))
                nn.init.uniform_(qkv.weight, -bound, bound)


def complete(config: Any, tasks: Mapping[str, Any]) -> Any:
    """The settings with what the tasks' tokenizer says.

    Raises:
        ConfigError: Nothing says how many words there are, or there are fewer than the tokenizer has.
    """
    tokenizers = (getattr(task, "tokenizer", None) for task in tasks.values())
    tokenizer = next((t for t in tokenizers if t is not None), None)
    found: dict[str, Any] = {}
    if config.vocab_size is None:
        if tokenizer is None:
            raise ConfigError("config.model.vocab_size: required, since no task brings a tokenizer")
        found["vocab_size"] = tokenizer.vocab_size
    elif tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"config.model.vocab_size: {config.vocab_size}, but the tasks' tokenizer has "
            f"{tokenizer.vocab_size} words; leave it out"
        )
    if config.spe_id is None and tokenizer is not None:
        found["spe_id"] = tokenizer.spe_id
    return config.model_copy(update=found)
