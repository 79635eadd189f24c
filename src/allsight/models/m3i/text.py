"""A transformer over the words of a caption.

Letters: b rows, t words, d channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.config import Config, Configured
from allsight.layers import AttentionBlock
from allsight.layers.norm import LAYER_NORM_EPS


class TextEncoder(nn.Module, Configured):
    """Word embeddings, learnt positions, blocks, a norm, and one vector of it all.

    Source: CLIP, arXiv:2103.00020, section 2.4.
    """

    class Config(Config):
        """Settings.

        Attributes:
            channels: Width.
            depth: Blocks.
            heads: Attention heads.
            max_tokens: Longest caption.
            pool: The vector of the last word, where words see only earlier ones (CLIP); or the mean of all
                words, which then see each other.
        """

        channels: int = Field(default=512, ge=1)
        depth: int = Field(default=12, ge=0)
        heads: int = Field(default=8, ge=1)
        max_tokens: int = Field(default=77, ge=1)
        pool: Literal["last", "mean"] = "last"

        @model_validator(mode="after")
        def _fits_together(self) -> TextEncoder.Config:
            if self.channels % self.heads:
                raise ValueError(f"heads: expected a divisor of channels={self.channels}, got {self.heads}")
            return self

    def __init__(self, config: TextEncoder.Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.words = nn.Embedding(vocab_size, width)
        self.places = nn.Parameter(nn.init.normal_(torch.empty(config.max_tokens, width), std=0.01))
        self.blocks = nn.ModuleList(AttentionBlock(width, heads=config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.no_weight_decay = {"words.weight", "places"}
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Int64[Tensor, "b t"], is_token: Bool[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        """Encode captions.

        Args:
            tokens: Ids, filled up behind.
            is_token: What is not filling. A row without any counts as one word, so that it stays finite.
        Raises:
            ValueError: Longer than `max_tokens`.
        """
        length = tokens.shape[1]
        if length > len(self.places):
            raise ValueError(
                f"captions of {length} tokens; the text encoder has max_tokens={len(self.places)}"
            )
        first = torch.zeros_like(is_token)
        first[:, 0] = True
        is_token = is_token | first
        mask = is_token[:, None, :]
        if self.config.pool == "last":
            mask = mask & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        x = self.words(tokens) + self.places[:length]
        mask = mask.expand(-1, length, -1)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if self.config.pool == "last":
            return x.take_along_dim((is_token.sum(1) - 1)[:, None, None], 1)[:, 0]
        return (x * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True)
