"""What every backbone accepts as pictures."""

import pytest
import torch

from allsight.backbones import BACKBONES, InternImage, ResNet, ViT

SMALL = {
    "internimage": InternImage.Config(channels=8, depths=(1,), groups=(1,), out_stages=(0,)),
    "resnet": ResNet.Config.variant("r18", out_stages=(0,)),
    "vit": ViT.Config(patch_px=8, channels=16, depth=1, heads=2),
}


def test_every_family_is_here():
    assert SMALL.keys() == BACKBONES.table.keys()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_pictures_of_another_floating_point_type_are_refused_in_a_line(name, own):
    net = SMALL[name].build().to(own).eval()
    for other in {torch.float16, torch.bfloat16, torch.float32, torch.float64} - {own}:
        with pytest.raises(
            ValueError, match=f"^images: expected uint8, or {own} .*, got {other}; use "
        ) as caught:
            net(torch.zeros(1, 3, 32, 32, dtype=other))
        assert "\n" not in str(caught.value)
    assert net(torch.zeros(1, 3, 32, 32, dtype=own))[0].dtype == own
    assert net(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))[0].dtype == own


@pytest.mark.parametrize("name", SMALL)
def test_autocast_takes_both_half_and_single(name):
    net = SMALL[name].build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            assert net(torch.zeros(1, 3, 32, 32, dtype=dtype))[0].shape[0] == 1
        with pytest.raises(ValueError, match=r"got torch\.float64"):
            net(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
