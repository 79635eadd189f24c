"""The shared transformer: pre-norm blocks, dense or with experts at every linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allsight.layers import DropPath, ExpertLinear, KeyValues, RunMix, SelfAttention
from allsight.layers.experts import LinearMaker, Mix, apply_pair
from allsight.models.uniperceiver.conditions import Conditions, conditions_of_prompts
from allsight.models.uniperceiver.prompts import Prompts, PromptSettings
from allsight.models.uniperceiver.router import ExpertSettings, Router, summarise

NORM_EPS = 1e-5


class BlockMemory:
    """What one block keeps while a text is written: keys and values, the means its routers look at, and what
    they chose where that does not depend on the tokens."""

    def __init__(self, seen: KeyValues) -> None:
        self.seen = seen
        self.summaries: list[Tensor | None] = [None, None]
        self.mixes: list[tuple[Conditions, RunMix] | None] = [None, None]

    def spread(self, times: int) -> None:
        """Each row becomes `times` rows, which lie side by side."""
        self.seen.spread(times)
        self.summaries = [None if s is None else s.repeat_interleave(times, dim=0) for s in self.summaries]


class Block(nn.Module):
    """x + scale1 * attention(norm1 x), then x + scale2 * mlp(norm2 x).

    Args:
        channels: Width of the tokens.
        heads: Attention heads.
        hidden: Width of the MLP.
        drop_path: Chance that a sample loses a branch in training.
        layer_scale: First value of the factor on each branch; None has no factor.
        experts: Make every linear layer a group of experts; None is dense.
        tasks: For `Router`.
        published: Keep the routers that published weights have at the second layer of each pair, unused.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        hidden: int,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        experts: ExpertSettings | None = None,
        tasks: Sequence[str] = (),
        published: bool = False,
    ) -> None:
        super().__init__()
        linear: LinearMaker = nn.Linear
        if experts is not None:
            linear = partial(ExpertLinear, num_experts=experts.count, per_token=experts.looks_at_data)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = SelfAttention(channels, heads=heads, linear=linear)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.fc1, self.fc2 = linear(channels, hidden), linear(hidden, channels)
        self.drop_path = DropPath(drop_path)
        scale = None if layer_scale is None else torch.full((channels,), layer_scale)
        self.scale1 = None if scale is None else nn.Parameter(scale.clone())
        self.scale2 = None if scale is None else nn.Parameter(scale.clone())
        self.attn_router = None if experts is None else Router(channels, experts, tasks)
        self.mlp_router = None if experts is None else Router(channels, experts, tasks)
        if experts is not None and published:
            self.attn_spare = Router(channels, experts, tasks).requires_grad_(False)
            self.mlp_spare = Router(channels, experts, tasks).requires_grad_(False)

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        mask: Bool[Tensor, "rows asking seen"] | Float[Tensor, "rows asking seen"] | None,
        conditions: Conditions,
        memory: BlockMemory | None = None,
        keep: int = 0,
        prompts: Float[Tensor, "p c"] | None = None,
        asks: int | None = None,
    ) -> Float[Tensor, "b answered c"]:
        """Attend and transform; see `SelfAttention` for `mask`, `memory`, `keep`, `prompts` and `asks`."""
        y = self.norm1(x)
        mix = self._mix(0, y, conditions, memory)
        more = {}
        if prompts is not None:
            y_of_prompts = self.norm1(prompts)
            of_prompts = conditions_of_prompts(conditions.purpose, len(prompts), device=x.device)
            chosen = None if mix is None else self._mix(0, y_of_prompts[None], of_prompts, None)
            more = {"prompts": y_of_prompts, "prompt_mix": chosen}
        seen = None if memory is None else memory.seen
        y = self.attn(y, mask, mix=mix, memory=seen, keep=keep, asks=asks, **more)
        x = self._joined(x if asks is None else x[:, x.shape[1] - asks :], y, self.scale1)
        y = self.norm2(x)
        mix = self._mix(1, y, conditions, memory)
        return self._joined(x, apply_pair(self.fc1, self.fc2, y, mix, F.gelu), self.scale2)

    def _joined(self, x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
        branch = branch if scale is None else scale * branch
        # A word that is written takes many small calls; one that does nothing would cost as much as others.
        return x + (self.drop_path(branch) if self.training else branch)

    def _mix(self, number: int, x: Tensor, conditions: Conditions, memory: BlockMemory | None) -> Mix | None:
        router = (self.attn_router, self.mlp_router)[number]
        if router is None:
            return None
        if memory is None:
            return router(x, conditions)
        summary = None
        if router.settings.routing == "context":
            # Later words route by the same mean as in one pass, which is that of the prefix.
            if memory.summaries[number] is None:
                memory.summaries[number] = summarise(x, conditions.is_open)
            summary = memory.summaries[number]
        known = memory.mixes[number]
        if known is not None and known[0] is conditions:
            return known[1]
        mix = router(x, conditions, summary)
        if isinstance(mix, RunMix):
            mix = replace(mix, merged={})
            memory.mixes[number] = conditions, mix
        return mix


class Trunk(nn.Module):
    """Blocks one after the other.

    Args:
        depth: How many.
        channels, heads, hidden, drop_path, layer_scale, experts, tasks, published: See `Block`; blocks 0,
            every, 2 every ... have experts.
        prompts: Tokens of prompt tuning; None: none.
    """

    def __init__(
        self,
        depth: int,
        channels: int,
        *,
        heads: int,
        hidden: int,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        experts: ExpertSettings | None = None,
        tasks: Sequence[str] = (),
        published: bool = False,
        prompts: PromptSettings | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_channels = heads, channels // heads
        self.blocks = nn.ModuleList(
            Block(
                channels,
                heads=heads,
                hidden=hidden,
                drop_path=drop_path,
                layer_scale=layer_scale,
                experts=experts if experts is not None and number % experts.every == 0 else None,
                tasks=tasks,
                published=published,
            )
            for number in range(depth)
        )
        has_tokens = prompts is not None and prompts.length > 0
        self.prompts = Prompts(prompts, depth, channels) if has_tokens and prompts is not None else None

    def forward(
        self,
        x: Float[Tensor, "b t c"],
        mask: Bool[Tensor, "rows asking seen"] | Float[Tensor, "rows asking seen"] | None,
        conditions: Conditions,
        memory: Sequence[BlockMemory] | None = None,
        keep: int = 0,
        asks: int | None = None,
    ) -> Float[Tensor, "b answered c"]:
        """Features of the tokens, without a norm after the last block.

        Args:
            x, mask, memory, keep: See `SelfAttention`.
            conditions: What the tokens are.
            asks: Of how many of the last tokens features are wanted, which spares the last block if it is
                dense the others'; None: of all.
        """
        is_target = conditions.purpose.is_target
        for number, block in enumerate(self.blocks):
            prompts = None if self.prompts is None else self.prompts.of_block(number, is_target=is_target)
            kept = None if memory is None else memory[number]
            # Experts know the runs of a whole sequence, and some choose by the mean of all its tokens.
            spares = number + 1 == len(self.blocks) and block.attn_router is None
            x = block(x, mask, conditions, kept, keep, prompts, asks if spares else None)
        return x if asks is None else x[:, x.shape[1] - asks :]

    def new_memory(self, rows: int, length: int, like: Tensor) -> list[BlockMemory]:
        """An empty memory for so many rows and tokens."""
        return [
            BlockMemory(KeyValues(rows, self.heads, length, self.head_channels, like)) for _ in self.blocks
        ]

    def routers(self) -> dict[str, Router]:
        """Every router by its name; none in a dense trunk."""
        return {
            name: module
            for name, module in self.named_modules()
            if name.endswith("_router") and isinstance(module, Router)
        }
