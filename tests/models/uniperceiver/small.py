"""Small models and queries in float64."""

import torch

from allsight.models import UniPerceiver
from allsight.models.uniperceiver import ExpertSettings
from allsight.types import Continuation, Query, Segment, Vocabulary

VOCAB, SPE = 23, 22


def make(seed=0, tasks=None, **changes):
    """A model with two blocks whose weights are drawn so that everything matters."""
    torch.manual_seed(seed)
    given = dict(
        depth=2,
        channels=16,
        heads=2,
        hidden=24,
        image_px=16,
        max_tokens=12,
        vocab_size=VOCAB,
        layer_scale=0.5,
    )
    config = UniPerceiver.Config.variant("micro", **{**given, "temperatures": ("any",), **changes})
    model = UniPerceiver(config, tasks or {}).double()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def experts(**changes):
    return ExpertSettings(**{"count": 4, "every": 1, "noise": 0.0, **changes})


def picture(rows=3, seed=1, px=16):
    return Segment(
        "image", torch.randn(rows, 3, px, px, generator=torch.Generator().manual_seed(seed)).double()
    )


def text(rows=3, length=5, seed=2, lengths=None, causal=False):
    ids = torch.randint(VOCAB - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = None if lengths is None else torch.arange(length) < torch.tensor(lengths)[:, None]
    return Segment("text", ids, mask, causal)


def caption(words, *, before=(), continuation=None):
    inputs = (*(before or (picture(len(words.content)),)), words)
    return Query(inputs, Vocabulary(), read=len(inputs) - 1, temperature="any", continuation=continuation)


def continuation(**changes):
    return Continuation(**{"end_id": 0, "max_tokens": 8, "forbidden": (SPE,), **changes})
