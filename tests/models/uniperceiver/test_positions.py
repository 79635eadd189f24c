"""Where texts lie, how large a temperature counts, and what padding may not change."""

import math

import pytest
import torch
from small import VOCAB, experts, make, picture, text
from torch import nn

from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import parameter_table
from allsight.layers import TokenMix, limit_load
from allsight.models import UniPerceiver
from allsight.models.uniperceiver.official import recognise
from allsight.models.uniperceiver.sequence import first_positions
from allsight.types import Closed, Query, Segment

NAMES = Closed("names", (text(rows=6, length=3, seed=9),))


def ask(*segments, read=None):
    return Query(segments, NAMES, read, temperature="any")


def logits_of(model, *segments):
    return model.answer(ask(*segments))["logits"]


def test_two_texts_are_as_one_and_their_order_shows():
    model, first, second = make(), text(seed=3), text(length=4, seed=4)
    joined = Segment("text", torch.cat([first.content, second.content], 1))
    torch.testing.assert_close(logits_of(model, first, second), logits_of(model, joined), rtol=0, atol=1e-12)
    swapped = logits_of(model, second, first)
    assert (logits_of(model, first, second) - swapped).abs().max() > 1e-3


def test_padding_between_two_texts_changes_nothing():
    model, lengths = make(), (2, 5, 3)
    first, second = text(lengths=lengths), text(length=4, seed=4)
    answers = logits_of(model, first, second)
    for row, length in enumerate(lengths):
        alone = logits_of(
            model,
            Segment("text", first.content[row : row + 1, :length]),
            Segment("text", second.content[row : row + 1]),
        )
        torch.testing.assert_close(answers[row : row + 1], alone, rtol=0, atol=1e-12)


def test_only_real_words_need_a_position():
    model = make()  # It has 12 positions.
    logits_of(model, text(length=10, lengths=(2, 3, 4)), text(length=8, seed=4))
    with pytest.raises(ValueError, match="text of 13 tokens: the model has 12 positions"):
        logits_of(model, text(length=10, lengths=(2, 3, 5)), text(length=8, seed=4))


def test_a_text_that_is_written_starts_anew():
    firsts = first_positions([text(length=4), picture(), text(length=3, causal=True)])
    assert firsts == [0, 0, 0]


def test_a_temperature_above_the_bound_counts_as_the_bound_and_has_no_gradient():
    model = make().train()
    with torch.no_grad():
        model.log_scales["any"].fill_(5.3)
    scale = model.scale("any")
    assert scale.item() == pytest.approx(100)
    (gradient,) = torch.autograd.grad(scale, model.log_scales["any"])
    assert float(gradient) == 0
    model.after_step(0)
    assert model.log_scales["any"].item() == pytest.approx(math.log(100))
    (gradient,) = torch.autograd.grad(model.scale("any"), model.log_scales["any"])
    assert float(gradient) == pytest.approx(100)


@pytest.mark.parametrize("scale", [160 / 224, 1.0])
def test_the_scale_of_positions_is_read_from_published_weights(scale):
    config = UniPerceiver.Config.variant(
        "micro", vocab_size=VOCAB, published=True, stem="patch", position_scale=scale, image_px=64
    )
    found = recognise(UniPerceiver(config, {}).official_state_dict())
    assert found["position_scale"] == pytest.approx(scale, abs=1e-5)


def test_biases_of_experts_routers_and_embeddings_do_not_decay():
    model = make(experts=experts())
    table = parameter_table(model, AdamW.Config(weight_decay=0.1))
    decays = {row.name for row in table.rows if row.weight_decay}
    assert decays
    modules = dict(model.named_modules())
    for name in decays:
        owner, _, last = name.rpartition(".")
        assert last == "weight" or not name.endswith("bias"), name
        assert not isinstance(modules[owner], nn.Embedding), name
        assert not owner.endswith(("choose", "router.embed")), name


def test_padding_takes_no_room_of_experts_and_does_not_count():
    model = make(experts=experts(routing="token", capacity=1.0)).train()
    short = text(length=4)
    longer = Segment("text", torch.cat([short.content, torch.zeros(3, 6, dtype=torch.int64)], 1))
    mask = torch.arange(10).expand(3, -1) < 4
    alone = Segment("text", short.content, torch.ones(3, 4, dtype=torch.bool))
    padded = Segment("text", longer.content, mask)
    torch.testing.assert_close(logits_of(model, padded), logits_of(model, alone), rtol=0, atol=1e-12)


def test_room_is_a_share_of_the_real_tokens():
    mix = TokenMix(
        torch.zeros(1, 6, 1, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7, 0.6, 1.0, 1.0])[None, :, None]
    )
    real = torch.tensor([[True, True, True, True, False, False]])
    limited = limit_load(mix, 2, 1.0, real)
    assert limited.gates.flatten().tolist() == pytest.approx([0.9, 0.8, 0, 0, 0, 0])


def test_answering_leaves_every_part_in_its_mode():
    model = make(tasks=None).train()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    model.train_quietly()
    before = [module.training for module in model.modules()]
    logits_of(model, picture())
    assert [module.training for module in model.modules()] == before
