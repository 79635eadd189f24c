"""Image classification: a backbone, a pooling head and a linear layer.

Letters: b batch, c channels, h w map.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.backbones import Backbone, InternImage
from allsight.backbones import internimage_fitting as fitting
from allsight.backbones import internimage_huggingface as huggingface
from allsight.backbones import internimage_layouts as layouts
from allsight.backbones import internimage_official as official
from allsight.backbones import internimage_recognition as recognition
from allsight.config import ConfigError, Variants
from allsight.layers import AttentionPool, make_activation
from allsight.layers.inference import take_in_batch_norm
from allsight.layers.norm import LAYER_NORM_EPS
from allsight.models.base import PlainModel, TaskModel, TaskOfModel
from allsight.models.head_rows import HeadRows, select_classes
from allsight.types import Batch, CheckpointError, FeatureSpec, Outputs, State
from allsight.weights import LoadReport, Opened, Source, Weights, open_weights, write_weights

# Widths of the attention-pooling head; fixed in the official code.
_TOKENS, _POOLED, _HEADS = 1024, 768, 16


def _variant(name: str) -> dict[str, Any]:
    head = "attention" if name in ("huge", "giant") else "conv"
    return {"backbone": InternImage.Config.variant(name), "head": head}


class Classifier(PlainModel):
    """Logits of a picture.

    Two heads, both official: "conv" (1x1 convolution, batch norm, mean over the last map; T to XL) and
    "attention" (the last two maps as tokens at the stride of the finer, pooled by attention; H and G, where
    it is called CLIP projector).

    Source: OpenGVLab/InternImage:classification/models/intern_image.py.
    """

    variants: ClassVar[Variants] = {name: _variant(name) for name in InternImage.variants}

    class Config(PlainModel.Config):
        """Settings of a classifier.

        Attributes:
            backbone: The backbone; its coarsest map must be among those it returns.
            num_classes: Number of logits; 0: no linear layer, the pooled features come out instead.
            head: How the maps are pooled.
            head_ratio: Width of the "conv" head in units of the last map's channels.
        """

        backbone: Backbone.Config
        num_classes: int = Field(default=1000, ge=0)
        head: Literal["conv", "attention"] = "conv"
        head_ratio: float = Field(default=1.5, gt=0)

        @model_validator(mode="after")
        def _fits_together(self) -> Classifier.Config:
            net = self.backbone
            if self.head == "attention" and isinstance(net, InternImage.Config):
                last = len(net.depths) - 1
                if net.norm != "layer":
                    raise ValueError("head: 'attention' needs a backbone with norm='layer'")
                if net.out_stages[-2:] != (last - 1, last):
                    raise ValueError(
                        f"head: 'attention' needs the last two stages in out_stages, got {net.out_stages}"
                    )
            return self

        @classmethod
        def from_official_args(cls, args: Mapping[str, Any]) -> Classifier.Config:
            """Translate constructor arguments or the YAML block of the official InternImage classifier.

            See `InternImage.Config.from_official_args` for the accepted forms.

            Raises:
                ConfigError: An argument that InternImage does not have, or one that is not supported.
            """
            given = official.official_args(args)
            if given["use_clip_projector"] and given["norm_layer"] == "BN":
                raise ConfigError("official InternImage: use_clip_projector does not work with norm_layer BN")
            return cls(
                backbone=InternImage.Config(**official.backbone_fields(args)),
                num_classes=given["num_classes"],
                head="attention" if given["use_clip_projector"] else "conv",
                head_ratio=given["cls_scale"],
            )

    config: Classifier.Config
    load_report: LoadReport | None

    def __init__(self, config: Classifier.Config) -> None:
        super().__init__()
        self.config = config
        self.load_report = None
        self.backbone: Backbone = config.backbone.build()
        specs = self.backbone.feature_specs
        act = config.backbone.act if isinstance(config.backbone, InternImage.Config) else "gelu"
        self.pool: ConvPool | MapAttentionPool
        if config.head == "conv":
            self.pool = ConvPool(specs[-1].channels, int(specs[-1].channels * config.head_ratio), act=act)
        else:
            self.pool = MapAttentionPool(specs[-2], specs[-1])
        width = self.pool.out_channels
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        for module in (*self.pool.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @property
    def feature_specs(self) -> tuple[FeatureSpec, ...]:
        """Channels and stride of the maps of `classifier.backbone(images)`."""
        return self.backbone.feature_specs

    def forward(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Compute the logits.

        Args:
            images: RGB; uint8 is normalised with the backbone's `mean` and `std`, floating point is taken as
                normalised. The "attention" head needs a last map exactly half as large as the one before,
                so sides divisible by the last stride (32).
        """
        return self.head(self.pool(self.backbone(images)))

    @classmethod
    def from_official(
        cls,
        source: Source,
        config: Classifier.Config | None = None,
        *,
        ema: bool = False,
        head_rows: HeadRows | None = None,
    ) -> Classifier:
        """Build the classifier of published weights.

        Args:
            source: File, folder or state dict: of the official classification code, its Hugging Face export,
                a DeepSpeed checkpoint, or of allsight.
            config: What to build; None: recognise variant, head and classes from names and shapes.
            ema: Take the averaged weights that a training file keeps beside the others.
            head_rows: The classes to keep, by their number in the weights and in the new order: numbers, or a
                file with one a line. The official `map22kto1k.txt` makes 1000 classes of 21841.

        Returns:
            The classifier in float32 with its `load_report`.

        Raises:
            CheckpointError: The weights cannot be read or do not fit; names the tensors.
        """
        found, notes = layouts.find(open_weights(source, ema=ema)), ()
        if head_rows is not None:
            found = select_classes(found, head_rows)
        head = recognition.head_of(found.tensors)
        if head is None:
            raise CheckpointError(
                f"{found.source}: Classifier: the weights have neither head; load them as a backbone "
                f"(InternImage)"
            )
        leaves_head_out = config is not None and not config.num_classes
        if config is None:
            backbone, notes = recognition.configure(InternImage.Config, found, InternImage.variants)
            config = recognition.built(cls.Config, {"backbone": backbone, **head}, found.source)
        elif config.num_classes not in (0, head["num_classes"]):
            raise CheckpointError(
                f"{found.source}: Classifier: head.weight has {head['num_classes']} classes, the config has "
                f"{config.num_classes}; choose classes with head_rows, or leave them out with num_classes=0"
            )
        with torch.device("meta"):
            model = cls(config)
        model.load_report = fitting.load_published(
            model,
            model.official_names(),
            found,
            config.backbone.model_dump(),
            InternImage.variants,
            what="Classifier",
            skip=lambda name: leaves_head_out and name.startswith("head."),
            notes=notes,
        )
        return model

    @classmethod
    def for_tasks(cls, config: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
        """Return the classifier as a model of one classification task."""
        return TrainableClassifier(config, tasks)

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names.

        Raises:
            CheckpointError: The backbone is not an InternImage.
        """
        state = self.state_dict()
        return {name: state[own] for own, name in self.official_names().items()}

    def save_official(self, path: Any) -> None:
        """Write the weights under the official names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)

    def save_huggingface(self, folder: Any) -> None:
        """Write `model.safetensors` and `config.json` in the form of the official Hugging Face export.

        Raises:
            CheckpointError: The official code has no such network.
        """
        head = {
            "num_classes": self.config.num_classes,
            "cls_scale": self.config.head_ratio,
            "use_clip_projector": self.config.head == "attention",
        }
        settings = huggingface.settings_of(self.config.backbone.model_dump(), head=head)
        huggingface.write(self.official_state_dict(), settings, folder)

    def official_names(self) -> dict[str, str]:
        """Return own name -> official name for every entry of the state dict.

        Raises:
            CheckpointError: The backbone is not an InternImage.
        """
        if not isinstance(self.backbone, InternImage):
            raise CheckpointError(
                f"Classifier: {type(self.backbone).__name__} has no official classifier weights"
            )
        inner = official.official_names(self.backbone.state_dict(), self.backbone.config.norm)
        names = {f"backbone.{own}": name for own, name in inner.items()}
        for own in self.state_dict():
            if own not in names:
                names[own] = official.official_head_name(own, self.config.head)
        return names


class TrainableClassifier(TaskModel):
    """A classifier as the engine drives it: pictures `image` of one task in, `{"logits": [b, classes]}` out.

    Raises:
        ConfigError: Not exactly one task, or one with another number of classes.
    """

    def __init__(self, config: Classifier.Config, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__(config, tasks)
        if len(tasks) != 1:
            raise ConfigError(
                f"config.model: a classifier serves one task, got {', '.join(tasks) or 'none'}; several "
                "share a "
                f"backbone with model.kind=multi_head"
            )
        ((self.task, task),) = tasks.items()
        classes = getattr(task, "num_classes", None)
        if classes != config.num_classes:
            raise ConfigError(
                f"config.model.num_classes: expected {classes} as task '{self.task}' has, got "
                f"{config.num_classes}"
            )
        self.classifier = Classifier(config)

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """Compute the logits of `batch.inputs["image"]`; there is no temporal state.

        Raises:
            ValueError: The batch is of another task or has no `image`.
        """
        images = batch.inputs.get("image")
        if batch.task != self.task or not isinstance(images, Tensor):
            raise ValueError(
                f"task '{batch.task}': the classifier expects batches of '{self.task}' with a tensor 'image'"
                f", got inputs {sorted(batch.inputs)}"
            )
        return {"logits": self.classifier(images)}, None

    def cause_of_misfit(self, weights: Mapping[str, Tensor]) -> str:
        from allsight.models.misfit import cause_of_misfit

        return cause_of_misfit(self, weights)

    def own_weights(self, weights: Weights) -> dict[str, Tensor]:
        """Return published weights under this model's names; what is not published comes back as it is."""
        is_own = any(name.startswith("classifier.") for name in weights)
        if is_own or not isinstance(self.classifier.backbone, InternImage):
            return dict(weights)
        names = {official: f"classifier.{own}" for own, official in self.classifier.official_names().items()}
        found = layouts.find(Opened(dict(weights), type(self.classifier).__name__, "weights"))
        fitted, neutral, _ = fitting.fitted(found.tensors, self.classifier.backbone.config.model_dump())
        return {names.get(name, name): tensor for name, tensor in {**neutral, **fitted}.items()}


class ConvPool(nn.Module):
    """1x1 convolution, batch norm, activation, mean over the last map."""

    def __init__(self, channels: int, out_channels: int, *, act: Literal["gelu", "silu", "relu"]) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.proj = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.act = make_activation(act)

    def forward(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> Float[Tensor, "b c"]:
        return self.act(self.norm(self.proj(maps[-1]))).mean((2, 3))

    def inference_form(self) -> nn.Module:
        """Return a copy whose batch norm is part of the convolution."""
        prepared = copy.deepcopy(self)
        if isinstance(prepared.norm, nn.BatchNorm2d):
            take_in_batch_norm(prepared.proj, prepared.norm)
            prepared.norm = nn.Identity()
        return prepared


class MapAttentionPool(nn.Module):
    """Lift the last two maps to the finer one's size, add them and pool their pixels by attention.

    Attributes:
        size_multiple: What the sides of pictures must be divisible by.
    """

    def __init__(self, fine: FeatureSpec, coarse: FeatureSpec) -> None:
        super().__init__()
        self.out_channels = _POOLED
        self.coarse = nn.Conv2d(coarse.channels, _TOKENS * 4, 1)
        self.fine = nn.Conv2d(fine.channels, _TOKENS, 1)
        self.attention = AttentionPool(_TOKENS, _POOLED, heads=_HEADS)
        self.norm = nn.LayerNorm(_POOLED, eps=LAYER_NORM_EPS)
        self.size_multiple = coarse.stride

    def forward(self, maps: tuple[Float[Tensor, "b _ _ _"], ...]) -> Float[Tensor, "b c"]:
        fine, coarse = maps[-2:]
        height, width = coarse.shape[2:]
        if tuple(fine.shape[2:]) != (2 * height, 2 * width):
            raise ValueError(
                f"images: the attention head needs sides divisible by {self.size_multiple}; the last two "
                f"maps are {tuple(fine.shape[2:])} and {(height, width)} instead of one twice the other"
            )
        x = F.pixel_shuffle(self.coarse(coarse), 2) + self.fine(fine)
        return self.norm(self.attention(x.flatten(2).transpose(1, 2)))
