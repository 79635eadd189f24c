"""Uni-Perceiver: one encoder for queries and candidates, one likelihood for all tasks.

Letters: b rows, t tokens, s candidates, g rows of a group, c channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from allsight.config import ConfigError, Variants, did_you_mean
from allsight.models.base import TaskModel, TaskOfModel
from allsight.models.multi_head import named_modules
from allsight.models.uniperceiver import official
from allsight.models.uniperceiver.candidates import Candidates
from allsight.models.uniperceiver.conditions import Purpose, purpose_of
from allsight.models.uniperceiver.encoder import VARIANTS, Encoder, EncoderSettings, complete
from allsight.models.uniperceiver.experts import merge_experts
from allsight.models.uniperceiver.negatives import keys_of, same_texts, with_queue
from allsight.models.uniperceiver.prompts import LinearHead, train_only_prompts
from allsight.objectives import (
    IGNORED_LABEL,
    FeatureQueue,
    boltzmann_logits,
    gather_rows,
    group_candidates,
)
from allsight.types import Batch, Closed, InBatch, Outputs, Query, State, Vocabulary
from allsight.weights import LoadReport, Source, Weights, read_weights, select_part, write_weights


class UniPerceiver(TaskModel):
    """P(target | query) ~ exp(cos(f(query), f(target)) / temperature), for every task the same f.

    Outputs are a dict. For `Closed` and `Vocabulary`: `logits` [b, s], or [b, t, s] where positions are read,
    with the query's `labels`; in training only positions with a label, [n, s] and [n]. For `InBatch`:
    `logits` [b, g] and `logits_back` [b, g] (the target asks), `labels` (each row's own place in its group),
    `excluded` [b, g] (other rows with the same text) in training, and `queries` and `targets` [b, c] and
    `scale` (1 / temperature) in evaluation. Where the query asks for a continuation, in evaluation:
    `tokens`, `log_probability`. `penalties` are the losses of routers, weighted.

    Args:
        config: Its settings.
        tasks: Task name -> object with `cast(batch) -> Query`.

    Source: Uni-Perceiver, arXiv:2112.01522; Uni-Perceiver-MoE, arXiv:2206.04674.
    """

    variants: ClassVar[Variants] = VARIANTS

    class Config(TaskModel.Config, EncoderSettings):
        """Settings of a Uni-Perceiver: those of the encoder, and of the likelihood.

        Attributes:
            temperatures: Names of learnt temperatures beside those called like the tasks.
            first_temperature: Where they start.
            max_scale: Bound of 1 / temperature, kept after each step.
            shard_above: Candidate sets of more than so many are split over ranks.
            monitor_every: Steps from one look at the experts' loads to the next.
        """

        temperatures: tuple[str, ...] = ()
        first_temperature: float = Field(default=0.07, gt=0)
        max_scale: float = Field(default=100.0, gt=0)
        shard_above: int = Field(default=1024, ge=1)
        monitor_every: int = Field(default=100, ge=1)

    config: UniPerceiver.Config
    load_report: LoadReport | None

    def __init__(self, config: UniPerceiver.Config, tasks: Mapping[str, TaskOfModel] | None = None) -> None:
        super().__init__(config, tasks or {})
        self.tasks = dict(tasks or {})
        self.load_report = None
        self.encoder = Encoder(complete(config, self.tasks), tuple(self.tasks))
        first = -math.log(config.first_temperature)
        names = dict.fromkeys((*config.temperatures, *self.tasks))
        self.log_scales = nn.ParameterDict({name: nn.Parameter(torch.tensor(first)) for name in names})
        self.queues = self._make_queues()
        self.heads = self._make_heads()
        if config.prompts is not None:
            train_only_prompts(self, config.prompts)
        self._candidates = Candidates(config.shard_above)
        self._loads: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._last: dict[str, tuple[Tensor, Tensor]] = {}

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """The likelihoods a task asks for.

        Raises:
            ValueError: The batch belongs to a task the model was not built with.
        """
        if batch.task not in self.tasks:
            raise ValueError(f"model has no task '{batch.task}'; it has {', '.join(self.tasks) or 'none'}")
        query = self.tasks[batch.task].cast(batch)
        groups = dict(group_size=batch.group_size, group_ranks=batch.group_ranks)
        return self.answer(query, task=batch.task, **groups), None

    def answer(
        self, query: Query, *, task: str = "", group_size: int | None = None, group_ranks: int = 1
    ) -> dict[str, Any]:
        """Outputs for any query, see the class.

        Args:
            query: What is asked.
            task: On whose behalf; names the temperature where the query does not.
            group_size: Rows that are each other's negatives; None: all.
            group_ranks: Ranks over which a group is spread.
        """
        purpose = purpose_of(query, task)
        scale = self.scale(query.temperature or task)
        if isinstance(query.among, InBatch):
            rows = len(query.inputs[0].content)
            outputs = self._in_batch(query, purpose, scale, group_size or rows, group_ranks)
        elif query.continuation is not None and not self.training:
            from allsight.models.uniperceiver.decoding import write

            outputs = write(self, query, purpose, scale)
        else:
            outputs = self._among_shared(query, query.among, purpose, scale)
        penalties = self._penalties()
        return {**outputs, "penalties": penalties} if penalties else outputs

    @property
    def max_text(self) -> int:
        """Tokens of the longest text it reads."""
        return self.config.max_tokens

    def candidates(self, among: Closed | Vocabulary, purpose: Purpose) -> Float[Tensor, "s c"]:
        """Features of a shared candidate set, of length 1; kept while weights do not change."""
        return self._candidates.features(self.encoder, among, purpose)

    def scale(self, name: str) -> Float[Tensor, ""]:
        """1 / temperature, at most `max_scale`, which is a constant without gradient above it.

        Raises:
            ConfigError: No temperature of that name.
        """
        if name not in self.log_scales:
            known = list(self.log_scales.keys())
            raise ConfigError(
                f"no temperature '{name}'{did_you_mean(name, known)}; name it in config.model.temperatures"
            )
        # Published files may hold more. At the bound itself the gradient passes.
        return self.log_scales[name].clamp(max=math.log(self.config.max_scale)).exp()

    def after_step(self, step: int) -> None:
        for module in self.queues.modules():
            if isinstance(module, FeatureQueue):
                module.advance()
        # On the parameter too: above the bound nothing would lead it back.
        with torch.no_grad():
            for log_scale in self.log_scales.values():
                log_scale.clamp_(max=math.log(self.config.max_scale))
        self._balance()

    def _among_shared(
        self, query: Query, among: Closed | Vocabulary, purpose: Purpose, scale: Tensor
    ) -> dict[str, Any]:
        read = self.encoder(query.inputs, purpose, query.read)
        labels = query.labels
        if self.training and labels is not None and labels.ndim == 2 and query.read is not None:
            # Most positions of a masked text ask for nothing, and a vocabulary is wide.
            is_asked = labels != IGNORED_LABEL
            read, labels = read[is_asked], labels[is_asked]
        logits = boltzmann_logits(read, self.candidates(among, purpose), scale, is_unit=True)
        if isinstance(among, Closed) and among.key in self.heads:
            logits = self.heads[among.key](logits, read)
        return {"logits": logits} if labels is None else {"logits": logits, "labels": labels}

    def _in_batch(
        self, query: Query, purpose: Purpose, scale: Tensor, group_size: int, group_ranks: int
    ) -> dict[str, Any]:
        assert isinstance(query.among, InBatch)
        queries = self.encoder(query.inputs, purpose, query.read)
        if not query.among.targets:
            return {"queries": queries}
        target = Purpose(purpose.task, purpose.inputs, purpose.targets, is_target=True)
        targets = self.encoder(query.among.targets, target)
        if not self.training:
            return {"queries": queries, "targets": targets, "scale": scale}

        def logits(asking: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
            candidates, own = group_candidates(asked, group_size=group_size, group_ranks=group_ranks)
            rows = asking.unflatten(0, (len(candidates), -1))
            return boltzmann_logits(rows, candidates, scale).flatten(0, 1), own

        there, own = logits(queries, targets)
        back, _ = logits(targets, queries)
        outputs = {"logits": there, "logits_back": back, "labels": own}
        texts = [segment for segment in query.among.targets if segment.modality == "text"]
        if len(texts) == len(query.among.targets) == 1:
            outputs["excluded"] = same_texts(texts[0], own, group_size, group_ranks)
            if purpose.task in self.queues:
                outputs |= with_queue(
                    outputs, queries, targets, keys_of(texts[0]), scale, self.queues[purpose.task]
                )
        return outputs

    def _make_queues(self) -> nn.ModuleDict:
        """Two queues for each task that wants some: of its targets and of its queries."""
        lengths = {name: int(getattr(task, "queue", 0)) for name, task in self.tasks.items()}
        pairs = {
            name: nn.ModuleDict(
                {
                    side: FeatureQueue(length, self.config.channels, keyed=True)
                    for side in ("targets", "queries")
                }
            )
            for name, length in lengths.items()
            if length
        }
        return named_modules(pairs, what="model.queues")

    def _make_heads(self) -> nn.ModuleDict:
        """A linear layer beside the similarity for each task that prompt tuning names.

        Raises:
            ConfigError: No such task, or it has no classes.
        """
        wanted = () if self.config.prompts is None else self.config.prompts.heads
        heads: dict[str, nn.Module] = {}
        for name in wanted:
            classes = getattr(self.tasks.get(name), "classes", ())
            if not classes:
                raise ConfigError(
                    f"config.model.prompts.heads: '{name}' is no task with classes"
                    f"{did_you_mean(name, self.tasks)}"
                )
            heads[name] = LinearHead(self.config.channels, len(classes))
        return named_modules(heads, what="model.heads")

    def _penalties(self) -> dict[str, Tensor]:
        """Losses of the routers in this forward pass, weighted; their load is kept for `after_step`."""
        settings = self.config.experts
        if settings is None or not self.training:
            return {}
        seen = {name: router.take_observed() for name, router in self.encoder.trunk.routers().items()}
        for name, observed in seen.items():
            for each in observed:
                # Gathered here, where all ranks pass equally often: `after_step` must not communicate.
                load = each.load[None]
                load = gather_rows(load).mean(0) if settings.bias_step > 0 else load[0]
                self._loads.setdefault(name, []).append((load, each.entropy))
        all_seen = [each for observed in seen.values() for each in observed]
        if not settings.looks_at_data or not all_seen:
            return {}
        weights = {"expert_balance": settings.balance_loss, "router_z": settings.z_loss}
        values = {
            "expert_balance": torch.stack([each.balance for each in all_seen]).mean(),
            "router_z": torch.stack([each.z for each in all_seen]).mean(),
        }
        return {name: weight * values[name] for name, weight in weights.items() if weight > 0}

    def _balance(self) -> None:
        """Move the routers' biases against the load of the step, and remember it for people."""
        settings = self.config.experts
        for name, router in self.encoder.trunk.routers().items():
            noted = self._loads.pop(name, [])
            if not noted or settings is None:
                continue
            load = torch.stack([load for load, _ in noted]).mean(0)
            entropy = torch.stack([entropy for _, entropy in noted]).mean()
            self._last[name] = (load, entropy)
            if settings.looks_at_data and settings.bias_step > 0:
                router.balance(load)

    def train_quietly(self) -> None:
        # Losses ask the model and the encoder for the mode; all else that does is random.
        self.eval()
        self.training = self.encoder.training = True

    def part_of(self, parameter: str) -> str:
        """`block N attention`, `block N MLP`, `text`, `vision`, or what comes after the blocks."""
        words = parameter.removeprefix("encoder.").split(".")
        if words[0] == "trunk" and words[1] == "blocks":
            is_attention = words[3] in ("norm1", "attn", "scale1", "attn_router")
            return f"block {words[2]} {'attention' if is_attention else 'MLP'}"
        return {"output_norm": "output", "vision_norm": "vision", "norm": "text"}.get(words[0], words[0])

    def monitors(self, step: int) -> dict[str, float] | None:
        """Of each router in the last step: `gate_entropy/NAME` (nats; log(experts) is even) and
        `expert_load/NAME/E`, the share of choices that expert E got; None between watched steps and for a
        model without experts."""
        if step % self.config.monitor_every or not self.encoder.trunk.routers():
            return None
        found: dict[str, float] = {}
        for name, (load, entropy) in self._last.items():
            short = name.removeprefix("blocks.")
            found[f"gate_entropy/{short}"] = float(entropy)
            found |= {f"expert_load/{short}/{e}": share for e, share in enumerate(load.tolist())}
        return found

    def merge_experts(self, attributes: Float[Tensor, "m bits"] | None = None) -> UniPerceiver:
        """A copy without routers, see `experts.merge_experts`."""
        return merge_experts(self, attributes)

    @classmethod
    def from_official(cls, source: Source, config: UniPerceiver.Config | None = None) -> UniPerceiver:
        """Build the model of published weights.

        Args:
            source: File or state dict of the official repository (v1 or Conditional MoE).
            config: What to build; None recognises it from names and shapes.
        Returns:
            The model in float32 with its `load_report`, without tasks; its temperatures have the published
            names (`img_cls`, `caption` ...).
        Raises:
            CheckpointError: The weights do not fit; names the tensors.
        """
        weights, outside = select_part(read_weights(source), "")
        if config is None:
            config = cls.Config(**official.recognise(weights))
        with torch.device("meta"):
            model = cls(config, {})
        model.load_report = official.load(model, weights, outside)
        return model

    def official_state_dict(self) -> dict[str, Tensor]:
        """The weights under the official names."""
        experts = self.config.experts
        activation = experts is not None and experts.activation
        return official.published(self.state_dict(), has_activation=activation)

    def save_official(self, path: Any) -> None:
        """Write the weights under the official names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)

    def own_weights(self, weights: Weights) -> dict[str, Tensor]:
        """Published weights under this model's names; what is not published comes back as it is."""
        part, _ = select_part(weights, "")
        own = official.own(part, self.state_dict()) if official.is_official(part) else dict(weights)
        for last in ("weight", "bias"):
            # Tuned apart, the norms of pictures and texts begin as the one they were.
            if hasattr(self.encoder, "vision_norm") and f"encoder.norm.{last}" in own:
                own.setdefault(f"encoder.vision_norm.{last}", own[f"encoder.norm.{last}"])
        return own
