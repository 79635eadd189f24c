"""Prompt tuning: what is trained and how much of it, where it starts, and what it leaves alone."""

import pytest
import torch
from small import caption, continuation, experts, make, picture, text
from test_four_tasks import Toy, scene

from allsight.config import ConfigError
from allsight.models import UniPerceiver
from allsight.models.uniperceiver import PromptSettings
from allsight.models.uniperceiver.conditions import purpose_of
from allsight.models.uniperceiver.decoding import write
from allsight.models.uniperceiver.prompts import trained_parts
from allsight.types import Batch, Closed, Query, Segment, Vocabulary

NAMES = Closed("names", (text(rows=6, length=3, seed=9),))
QUERY = Query((picture(),), NAMES, labels=torch.tensor([0, 1, 2]), temperature="any")


class Named:
    """A task with 1000 classes, as far as the model asks."""

    classes = tuple(map(str, range(1000)))

    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        raise NotImplementedError


def test_counts_are_the_published_ones():
    """Base: 768 on <SPE>, 27 norms, 12 x 10 tokens for queries and as many for targets, 768 a class."""
    settings = PromptSettings(heads=("in1k",))
    config = UniPerceiver.Config.variant("base", vocab_size=100, prompts=settings)
    with torch.device("meta"):
        counts = dict(trained_parts(UniPerceiver(config, {"in1k": Named()})))
    assert counts.pop("heads") == 768 * 1000 + 1000 + 1
    assert counts == {"spe": 768, "norms": 41_472, "prompts": 184_320}
    shared = UniPerceiver.Config.variant("base", vocab_size=100, prompts=PromptSettings(sides="shared"))
    with torch.device("meta"):
        assert trained_parts(UniPerceiver(shared))["prompts"] == 92_160


def tuned(model, **settings):
    """The same weights with prompts added, as a run starts from them."""
    config = model.config.model_copy(update={"prompts": PromptSettings(**settings)})
    grown = UniPerceiver(config, model.tasks).double()
    weights = {**grown.state_dict(), **model.own_weights(model.state_dict())}
    weights |= {k: v for k, v in grown.own_weights(model.state_dict()).items() if k in weights}
    grown.load_state_dict(weights)
    return grown.eval()


@pytest.mark.parametrize("kind", [None, experts(routing="attribute")])
def test_without_tokens_it_begins_as_the_model_it_tunes(kind):
    model = make(experts=kind)
    with torch.no_grad():
        expected, found = model.answer(QUERY)["logits"], tuned(model, length=0).answer(QUERY)["logits"]
        other = tuned(model, length=4).answer(QUERY)["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (other - expected).abs().max() > 1e-6


@pytest.mark.parametrize("kind", [None, experts(routing="attribute")])
def test_texts_are_written_with_a_memory_as_without(kind):
    model = tuned(make(experts=kind), length=3)
    query = caption(Segment("text", torch.empty(3, 0, dtype=torch.int64), causal=True))
    query = Query(query.inputs, Vocabulary(), query.read, continuation=continuation(beam=3))
    with torch.no_grad():
        a, b = (
            write(model, query, purpose_of(query, ""), model.scale("any"), cached=cached)
            for cached in (True, False)
        )
    torch.testing.assert_close(a["log_probability"], b["log_probability"])


def test_training_changes_only_what_it_should():
    torch.manual_seed(0)
    settings = PromptSettings(heads=("class",))

    class Classes(Toy):
        classes = tuple("abcd")

        def cast(self, batch):
            query = super().cast(batch)
            return Query(query.inputs, Closed("class", query.among.candidates), None, query.labels)

    config = UniPerceiver.Config.variant(
        "micro", depth=1, channels=16, heads=2, hidden=16, image_px=16, vocab_size=10, spe_id=8
    )
    model = UniPerceiver(config.model_copy(update={"prompts": settings}), {"class": Classes("class")}).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    image, shape, words = scene(8, torch.Generator().manual_seed(0))
    batch = Batch("class", tuple("abcdefgh"), {"image": image}, {"shape": shape, "words": words})
    for _ in range(2):
        outputs, _ = model(batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(outputs["logits"], outputs["labels"]).backward()
        optimizer.step()
        model.after_step(0)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"heads.class.alpha", "encoder.vision_norm.weight", "encoder.text.spe_bias"} <= changed
    assert not any(".fc1." in name or "log_scales" in name for name in changed)


def test_a_head_is_for_the_classes_it_was_made_for():
    with pytest.raises(ConfigError, match="'nope' is no task with classes"):
        make(prompts=PromptSettings(heads=("nope",)))


def test_names_are_encoded_once_where_only_queries_learn(monkeypatch):
    """Features of targets that no trained weight reaches are kept from step to step, also in training."""
    settings = dict(length=2, norms=False, spe=False)
    calls = []
    for sides in ("queries", "apart"):
        model = make(prompts=PromptSettings(sides=sides, **settings)).train()
        encode = model.encoder.forward
        seen = []
        monkeypatch.setattr(
            model.encoder, "forward", lambda *a, encode=encode, seen=seen: seen.append(1) or encode(*a)
        )
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            model.answer(QUERY)["logits"].logsumexp(1).sum().backward()
            optimizer.step()
        assert all(p.grad is not None for p in optimizer.param_groups[0]["params"])
        calls.append(len(seen))
    # A query a step, and the names once or each time.
    assert calls == [4, 6]


def test_data_dependent_experts_have_no_prompts():
    with pytest.raises(ConfigError, match=r"prompts: not with experts\.routing=token"):
        make(experts=experts(routing="token"), prompts=PromptSettings())
