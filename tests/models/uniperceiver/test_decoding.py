"""Training in one pass is writing word by word, and writing with a memory is writing without."""

import pytest
import torch
from small import SPE, VOCAB, caption, continuation, experts, make, picture, text

from allsight.models.uniperceiver.conditions import purpose_of
from allsight.models.uniperceiver.decoding import Cached, write
from allsight.types import Query, Segment, Vocabulary

KINDS = {
    "dense": None,
    **{kind: experts(routing=kind) for kind in ("attribute", "modality", "token", "context")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_is_step_by_step(kind):
    model = make(seed=1, experts=KINDS[kind])
    words = text(causal=True)
    query = caption(words)
    with torch.no_grad():
        at_once = model.encoder(query.inputs, purpose_of(query, ""), query.read)
        before = (*query.inputs[:-1], Segment("text", words.content[:, :0], causal=True))
        reader = Cached(model, before, purpose_of(query, ""), words.content.shape[1])
        steps = [reader.next(words.content[:, :length]) for length in range(words.content.shape[1])]
    torch.testing.assert_close(at_once, torch.stack(steps, dim=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_changes_only_what_comes_after_it(kind):
    model = make(seed=1, experts=KINDS[kind])
    words = text(causal=True)
    other = words.content.clone()
    other[:, 2] = (other[:, 2] + 1) % (VOCAB - 1)
    queries = [caption(words), caption(Segment("text", other, causal=True))]
    with torch.no_grad():
        (a, layout), (b, _) = (model.encoder.encode(q.inputs, purpose_of(q, ""), q.read) for q in queries)
    first, _ = layout.read
    prefix = first - words.content.shape[1]
    # Exactly, but for round-off of products over tokens that happen to share an expert.
    tolerance = dict(rtol=0, atol=1e-12 if kind in ("token", "context") else 0)
    torch.testing.assert_close(a[:, :prefix], b[:, :prefix], **tolerance)
    torch.testing.assert_close(a[:, first : first + 3], b[:, first : first + 3], **tolerance)
    assert (a[:, first + 3 :] - b[:, first + 3 :]).abs().amax((0, 2)).min() > 1e-6


@pytest.mark.parametrize("kind", ["dense", "attribute"])
@pytest.mark.parametrize("beam", [1, 3, 5])
def test_memory_gives_what_encoding_anew_gives(kind, beam):
    model = make(seed=1, experts=KINDS[kind])
    before = (picture(), text(length=4, lengths=[4, 2, 3], seed=5))
    query = caption(Segment("text", torch.empty(3, 0, dtype=torch.int64), causal=True), before=before)
    query = Query(query.inputs, Vocabulary(), query.read, continuation=continuation(beam=beam))
    with torch.no_grad():
        outcomes = [
            write(model, query, purpose_of(query, ""), model.scale("any"), cached=cached)
            for cached in (True, False)
        ]
    assert torch.equal(outcomes[0]["tokens"], outcomes[1]["tokens"])
    torch.testing.assert_close(outcomes[0]["log_probability"], outcomes[1]["log_probability"])
    assert len({tuple(row) for row in outcomes[0]["tokens"].tolist()}) > 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_goes_on_with_what_it_would_have_said(cached):
    """Begun with the first words of what it writes, it writes the rest."""
    model = make()

    def written(words, **changes):
        query = caption(Segment("text", words, causal=True))
        query = Query(query.inputs, Vocabulary(), 1, continuation=continuation(end_id=SPE - 1, **changes))
        with torch.no_grad():
            return write(model, query, purpose_of(query, ""), model.scale("any"), cached=cached)["tokens"]

    whole = written(torch.empty(3, 0, dtype=torch.int64), max_tokens=6)
    rest = written(whole[:, :2], max_tokens=4, goes_on=True)
    assert torch.equal(rest, whole[:, 2:])


@pytest.mark.parametrize("beam", [1, 3])
def test_rows_do_not_know_of_each_other(beam):
    """A question of two words beside one of four is answered as if it were alone."""
    model = make()
    question = text(length=4, lengths=[4, 2, 3], seed=5)

    def answer(rows, length):
        short = Segment("text", question.content[rows, :length], question.mask[rows, :length])
        query = caption(
            Segment("text", torch.empty(len(rows), 0, dtype=torch.int64), causal=True),
            before=(Segment("image", picture().content[rows]), short),
            continuation=continuation(beam=beam),
        )
        with torch.no_grad():
            return model.answer(query)

    together = answer([0, 1, 2], 4)
    alone = answer([1], 2)
    length = int(alone["lengths"][0])
    assert together["tokens"][1, :length].tolist() == alone["tokens"][0, :length].tolist()
    torch.testing.assert_close(together["log_probability"][1:2], alone["log_probability"])


def test_probability_is_that_of_one_pass():
    """The product over words and the end, as training computes it."""
    model = make()
    asked = caption(
        Segment("text", torch.empty(3, 0, dtype=torch.int64), causal=True), continuation=continuation(beam=3)
    )
    with torch.no_grad():
        found = model.answer(asked)
        words = Segment("text", found["tokens"], causal=True)
        logits = model.answer(caption(words))["logits"]
    logits[..., SPE] = float("-inf")
    log_p = logits.log_softmax(-1).gather(-1, found["tokens"][..., None])[..., 0]
    counts = torch.arange(log_p.shape[1]) <= found["lengths"][:, None]
    torch.testing.assert_close((log_p * counts).sum(1), found["log_probability"])


def test_a_wider_beam_finds_no_worse_text():
    model = make(seed=3)
    model.log_scales["any"].data.fill_(1.0)
    empty = Segment("text", torch.empty(3, 0, dtype=torch.int64), causal=True)
    with torch.no_grad():
        greedy, wide = (
            model.answer(caption(empty, continuation=continuation(beam=beam, max_tokens=3)))
            for beam in (1, VOCAB)
        )
    assert (wide["log_probability"] >= greedy["log_probability"] - 1e-12).all()
    assert (wide["log_probability"] > greedy["log_probability"] + 1e-6).any()


def test_drawn_words_follow_their_probabilities():
    model = make()
    empty = Segment("text", torch.empty(400, 0, dtype=torch.int64), causal=True)
    same = Segment("image", picture(1).content.expand(400, -1, -1, -1))
    query = caption(empty, before=(same,), continuation=continuation(temperature=1.0, max_tokens=1))
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = model.answer(query)["tokens"][:, 0]
        one = caption(
            Segment("text", torch.zeros(1, 1, dtype=torch.int64), causal=True), before=(picture(1),)
        )
        p = model.answer(one)["logits"][0, 0].index_fill(0, torch.tensor([SPE]), float("-inf")).softmax(-1)
    seen = torch.bincount(drawn, minlength=VOCAB).double() / 400
    assert ((seen - p).abs() < 4 * (p * (1 - p) / 400).sqrt() + 1e-3).all()


def test_text_without_anything_before_it():
    model = make()
    empty = Segment("text", torch.empty(2, 0, dtype=torch.int64), causal=True)
    query = Query((empty,), Vocabulary(), 0, temperature="any", continuation=continuation(max_tokens=4))
    with torch.no_grad():
        found = model.answer(query)
    assert found["tokens"].shape[0] == 2
    assert torch.equal(found["tokens"][0], found["tokens"][1])


def test_what_is_written_must_be_last():
    model = make()
    query = Query(
        (text(causal=True), picture()), Vocabulary(), 0, temperature="any", continuation=continuation()
    )
    with pytest.raises(ValueError, match="last input"):
        model.answer(query)
