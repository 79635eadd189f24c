"""A linear layer as a group of experts, and which of them a token gets.

Letters: b rows, t tokens, m mixes, e experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from allsight.layers.expert_exchange import dispatch_over_ranks
from allsight.ops import expert_dispatch


@dataclass(frozen=True)
class RunMix:
    """Runs of neighbouring tokens, each with one mix of experts: nothing needs to be dispatched.

    Args:
        runs: First token and the one after the last of each run; together they are the whole sequence.
        gates: Weight of each expert in each run's mix; all but `k` of a row are 0.
        choice: The one expert of each run, where experts were merged; `gates` then say nothing.
        merged: What experts were merged into, layer by layer, where the same mix is asked for again before
            weights change; None merges in each call.
    """

    runs: tuple[tuple[int, int], ...]
    gates: Float[Tensor, "m e"]
    choice: tuple[int, ...] | None = None
    merged: dict[nn.Module, tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class TokenMix:
    """A choice of experts for each token.

    Args:
        experts: The chosen ones, best first.
        gates: Their weights; 0 for a choice that found no room.
    """

    experts: Int64[Tensor, "b t k"]
    gates: Float[Tensor, "b t k"]


Mix = RunMix | TokenMix


class ExpertLinear(nn.Module):
    """`num_experts` linear layers whose results are mixed: y = sum over chosen e of gate_e (W_e x + b_e).

    Where a run of tokens shares its mix the experts are first merged into one matrix, which is the same by
    linearity and costs one product in place of k.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.
        num_experts: How many.
        per_token: Tokens choose for themselves, so that experts may be split over ranks (`split_experts`).

    Attributes:
        group: Ranks over which experts are split; None: all are here. Runs cannot share such experts.
        gathered: All weights and biases, while a rank holds them in spite of the split.

    Source: Uni-Perceiver-MoE, arXiv:2206.04674.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_experts: int, *, per_token: bool = False
    ) -> None:
        super().__init__()
        self.per_token = per_token
        self.group: ProcessGroup | None = None
        self.gathered: tuple[Tensor, Tensor] | None = None
        self.weight = nn.Parameter(torch.empty(num_experts, out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(num_experts, out_channels))
        self.no_weight_decay = {"bias"}
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Float[Tensor, "b t c"], mix: Mix) -> Float[Tensor, "b t out"]:
        if isinstance(mix, TokenMix):
            flat = self._dispatch(x.flatten(0, 1), mix.experts.flatten(0, 1), mix.gates.flatten(0, 1))
            return flat.unflatten(0, x.shape[:2])
        return _join([F.linear(*each) for each in zip(_cut(x, mix), *self.of_runs(mix), strict=True)])

    def of_runs(self, mix: RunMix) -> tuple[Sequence[Tensor] | Tensor, Sequence[Tensor] | Tensor]:
        """Weights and biases of the layer of each run.

        Raises:
            ValueError: Experts are split over ranks.
        """
        if self.group is not None:
            raise ValueError("ExpertLinear: experts split over ranks cannot be shared by runs of tokens")
        if mix.choice is not None:
            weight, bias = ([part[expert] for expert in mix.choice] for part in (self.weight, self.bias))
            return weight, bias
        if mix.merged is None:
            return self.merged(mix.gates)
        if self not in mix.merged:
            mix.merged[self] = self.merged(mix.gates)
        return mix.merged[self]

    def merged(self, gates: Float[Tensor, "m e"]) -> tuple[Float[Tensor, "m out c"], Float[Tensor, "m out"]]:
        """The one linear layer that each mix of experts amounts to."""
        gates = gates.to(self.weight.dtype)
        # A product per expert: `einsum` would lay all of them out anew, which costs more than the sums.
        return (gates @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:]), gates @ self.bias

    def _dispatch(
        self, x: Float[Tensor, "n c"], experts: Int64[Tensor, "n k"], gates: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n out"]:
        weight, bias = (self.weight, self.bias) if self.gathered is None else self.gathered
        if self.group is None or self.gathered is not None:
            return expert_dispatch(x, weight.to(x.dtype), bias.to(x.dtype), experts, gates)
        split: list[Any] = [weight, bias]  # DTensors, by `split_experts`
        w, b = (part.to_local().to(x.dtype) for part in split)
        return dispatch_over_ranks(x, w, b, experts, gates, group=self.group)

    def extra_repr(self) -> str:
        experts, out, channels = self.weight.shape
        return f"{channels}, {out}, experts={experts}"


def apply_linear(layer: nn.Module, x: Float[Tensor, "b t c"], mix: Mix | None) -> Float[Tensor, "b t out"]:
    """`layer(x)` for a linear layer, `layer(x, mix)` for a group of experts."""
    return layer(x, mix) if isinstance(layer, ExpertLinear) else layer(x)


def apply_pair(
    first: nn.Module,
    second: nn.Module,
    x: Float[Tensor, "b t c"],
    mix: Mix | None,
    between: Callable[[Tensor], Tensor],
) -> Float[Tensor, "b t out"]:
    """`second(between(first(x)))` with the same mix in both; `between` looks at one number at a time."""
    if not (isinstance(mix, RunMix) and isinstance(first, ExpertLinear) and isinstance(second, ExpertLinear)):
        return apply_linear(second, between(apply_linear(first, x, mix)), mix)
    # Runs stay apart from one layer to the next: what lies between is the widest there is.
    layers = zip(*first.of_runs(mix), *second.of_runs(mix), strict=True)
    return _join(
        [
            F.linear(between(F.linear(part, w1, b1)), w2, b2)
            for part, (w1, b1, w2, b2) in zip(_cut(x, mix), layers, strict=True)
        ]
    )


def _cut(x: Float[Tensor, "b t c"], mix: RunMix) -> Sequence[Tensor]:
    """The runs. Split, not sliced: a slice's gradient is a whole sequence of zeros but for its own tokens."""
    if len(mix.runs) == 1:
        return (x,)
    # Laid out anew here: a linear layer would do the same, and then add its bias in a pass of its own.
    return [part.contiguous() for part in x.split([end - first for first, end in mix.runs], dim=1)]


def _join(parts: list[Tensor]) -> Float[Tensor, "b t c"]:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def choose_experts(
    logits: Float[Tensor, "*lead e"],
    *,
    k: int,
    noise: Float[Tensor, "*lead e"] | None = None,
    bias: Float[Tensor, " e"] | None = None,
) -> tuple[Int64[Tensor, "*lead k"], Float[Tensor, "*lead k"]]:
    """The `k` likeliest experts and their weights: softmax over all, then the k best, then normalised to 1.

    Args:
        logits: In float32 at least.
        noise: Added to the logits (exploration).
        bias: Added for the choice alone, not to the weights (balancing without a loss).
    Source: fundamentalvision/Uni-Perceiver:uniperceiver/task_moe/gate.py (order of steps, noise); the bias:
    arXiv:2408.15664, eq. 3.
    """
    logits = logits if noise is None else logits + noise
    experts = (logits if bias is None else logits.softmax(-1) + bias).topk(k, dim=-1).indices
    gates = logits.softmax(-1).gather(-1, experts)
    if k > 1:
        gates = gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).eps)
    return experts, gates


def limit_load(
    mix: TokenMix, num_experts: int, capacity_factor: float, is_real: Bool[Tensor, "b t"] | None = None
) -> TokenMix:
    """Take the weight from choices for which their expert has no room, the lightest ones first.

    Room is `capacity_factor` times the even share of the tokens. What a token gets then depends on the
    others of its micro-batch.

    Args:
        mix: What tokens chose.
        num_experts: How many there are to choose from.
        capacity_factor: See above.
        is_real: Tokens that are no padding, which makes no room and takes none; None: all.
    Source: V-MoE, arXiv:2106.05974, section 4 (batch prioritised routing).
    """
    flat, gates = mix.experts.flatten(), mix.gates.flatten()
    if is_real is None:
        weight, count = gates.detach(), flat.new_tensor(flat.numel())
    else:
        real = is_real[..., None].expand_as(mix.gates).flatten()
        # Last in the order, and of no weight.
        gates = gates * real
        weight, count = gates.detach().masked_fill(~real, -1), real.sum()
    room = (capacity_factor * count / num_experts).long().clamp_min(1)
    order = weight.argsort(descending=True, stable=True)
    ordered = F.one_hot(flat[order], num_experts)
    place = (ordered.cumsum(0) * ordered).sum(-1)
    fits = torch.empty_like(place, dtype=torch.bool)
    fits[order] = place <= room
    return replace(mix, gates=(gates * fits).view_as(mix.gates))


def balance_loss(
    probabilities: Float[Tensor, "n e"], experts: Int64[Tensor, "n k"], is_real: Tensor | None = None
) -> Float[Tensor, ""]:
    """How unevenly tokens are spread over experts; 1 where evenly.

    Args:
        probabilities: Softmax of the logits.
        experts: The chosen ones; the first of each counts.
        is_real: Tokens that count [n]; None counts all.
    Source: Switch Transformer, arXiv:2101.03961, eq. 4.
    """
    num_experts = probabilities.shape[-1]
    real = torch.ones_like(probabilities[:, 0]) if is_real is None else is_real.to(probabilities)
    total = real.sum().clamp_min(1)
    share = (F.one_hot(experts[:, 0], num_experts).to(probabilities) * real[:, None]).sum(0) / total
    return num_experts * (share * (probabilities * real[:, None]).sum(0) / total).sum()


def router_z_loss(logits: Float[Tensor, "n e"]) -> Float[Tensor, ""]:
    """Mean of the squared log-sum-exp, which keeps a router's logits small (ST-MoE, arXiv:2202.08906)."""
    return logits.logsumexp(-1).square().mean()


LinearMaker = Callable[[int, int], nn.Module]
"""Makes a linear layer, or a group of them, from input and output width."""
