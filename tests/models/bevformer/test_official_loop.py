"""`compat="official"` over time: streams go through the published loop, written anew for comparison."""

import math
from dataclasses import replace

import pytest
import torch
from official_bevformer import OfficialLoop
from rigs import frame_of, row_of, turned

from allsight.backbones import ResNet
from allsight.models import BEVFormer
from allsight.models.bevformer import BEVNetwork, DetectionHead

HW_PX, HW, RANGE_M = (32, 48), (6, 7), (-20.0, -14.0, -3.0, 26.0, 18.0, 5.0)


def model_of(center):
    torch.manual_seed(0)
    network = BEVNetwork.Config.variant(
        "tiny",
        backbone=ResNet.Config(block="basic", depths=(1, 1), channels=8, out_stages=(0, 1), norm="frozen"),
        levels=2,
        range_m=RANGE_M,
        bev_hw=HW,
        channels=16,
        hidden=24,
        layers=2,
        heads=2,
        cameras=3,
        drop=0.0,
        compat="official",
        rotate_center=center,
        max_gap_s=None,
    )
    head = DetectionHead.Config(queries=5, layers=2, heads=2, hidden=24, drop=0.0, num_answers=5)
    model = BEVFormer(BEVFormer.Config(network=network, detection=head)).double().eval()
    for parameter in model.parameters():
        # Away from the start, where offsets are whole cells and many weights zero.
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def drive(rows):
    """Five frames of cars that pass heading 0 (or drive backwards) and change the scene after the third."""
    generator = torch.Generator().manual_seed(1)
    frames = []
    for number in range(5):
        poses = [turned(0.1 * row, x=3.0 * row) for row in range(rows)]
        frame = frame_of(poses, cameras=3, seed=number, times_s=[0.5 * number] * rows, dtype=torch.float64)
        can_bus = torch.rand(rows, 18, generator=generator, dtype=torch.float64)
        for row in range(rows):
            yaw = math.radians(355.0 + 4.0 * number - 7.0 * row) % (2 * math.pi)
            ahead = (2.0 - 3.5 * row) * number
            can_bus[row, :3] = torch.tensor(
                [400 + ahead * math.cos(yaw), 900 + ahead * math.sin(yaw), 0.1], dtype=torch.float64
            )
            can_bus[row, 16], can_bus[row, 17] = yaw, math.degrees(yaw)
        starts = torch.tensor([number in (0, 3)] * rows)
        frames.append(replace(frame, rig=replace(frame.rig, can_bus=can_bus), starts=starts))
    return frames


def by_the_loop(model, frames):
    """The published loop on features of the model's own backbone, one row."""
    loop = OfficialLoop(
        model.official_state_dict(),
        heads=2,
        hw=HW,
        range_m=RANGE_M,
        center=model.config.network.rotate_center,
        hw_px=HW_PX,
    )
    for number, frame in enumerate(frames):
        maps = model.network.neck(model.network.backbone(frame.images.flatten(0, 1)))
        cameras = [[level[n] for level in maps] for n in range(3)]
        yield loop.frame(
            "first" if number < 3 else "second", frame.rig.can_bus[0], cameras, frame.rig.img_from_ref[0]
        )


@pytest.mark.parametrize(
    ("center", "rows"), [((100.0, 100.0), 1), ((3.5, 3.0), 2)], ids=["published", "middle"]
)
def test_a_stream_is_the_published_loop(center, rows):
    model, frames = model_of(center), drive(rows)
    stream = model.stream()
    state, found = stream.init(rows), []
    with torch.no_grad():
        for frame in frames:
            out, state = stream.step(frame, state)
            found.append(out)
        for row in range(rows):
            expected = by_the_loop(model, [row_of(frame, row) for frame in frames])
            for out, (bev, logits, boxes) in zip(found, expected, strict=True):
                torch.testing.assert_close(out.bev[row].flatten(1).T, bev, atol=1e-9, rtol=1e-9)
                torch.testing.assert_close(out.detection.logits[:, row], logits, atol=1e-9, rtol=1e-9)
                torch.testing.assert_close(out.detection.codes[:, row], boxes, atol=1e-8, rtol=1e-9)
    # Each of the rules counts: the past, the turn, the way.
    assert not torch.allclose(found[1].bev, model(replace(frames[1], starts=None))[0].bev, atol=1e-3)
