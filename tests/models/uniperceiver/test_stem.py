"""The stem of small pictures."""

import torch
from torch import nn

from allsight.models.uniperceiver.tokenizers import ConvStem


def test_tokens_keep_what_the_convolutions_throw_away():
    """Colours, say, once the convolutions have learnt to name shapes."""
    torch.manual_seed(0)
    stem = ConvStem(16)
    last = stem.convolutions[-1]
    assert isinstance(last, nn.GroupNorm)
    nn.init.zeros_(last.weight)
    red, blue = torch.zeros(2, 1, 3, 24, 16)
    red[:, 0], blue[:, 2] = 1.0, 1.0
    tokens = stem(red), stem(blue)
    assert tokens[0].shape == (1, 16, 3, 2)
    assert not torch.allclose(*tokens)
