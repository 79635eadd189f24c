"""The model as people use it: memory in their hands, true batches, clips, streams, heads of tasks."""

import io
from unittest import mock

import pytest
import torch
from rigs import frame_of, ring, row_of, turned

from allsight.backbones import InternImage
from allsight.config import ConfigError
from allsight.models import BEVFormer, model_for_tasks
from allsight.models.bevformer import BEVStream, DetectionHead, TrainableBEVFormer
from allsight.models.bevformer.stream import BEVStep
from allsight.objectives import center_loss, center_targets, detection_3d_losses
from allsight.tasks import BEVDetection
from allsight.types import Batch, Boxes3D, MultiCameraBatch

NETWORK = dict(bev_hw=(10, 12), channels=16, heads=2, hidden=24, layers=2, cameras=4)
BACKBONE = dict(block="basic", depths=(1, 1), channels=8, out_stages=(0, 1))
HEAD = dict(queries=6, peaks=4, layers=2, heads=2, hidden=24, num_answers=8)


def config(network=None, head=None):
    micro = BEVFormer.Config.variant("micro")
    small = micro.network.model_copy(update={}).model_dump() | NETWORK | (network or {})
    small["backbone"] = type(micro.network.backbone)(**BACKBONE, norm="frozen")
    if network and "backbone" in network:
        small["backbone"] = network["backbone"]
    return BEVFormer.Config(
        network=type(micro.network)(**small),
        detection=DetectionHead.Config(**{**micro.detection.model_dump(), **HEAD, **(head or {})}),
    )


def model_of(seed=0, **changes):
    torch.manual_seed(seed)
    model = BEVFormer(config(**changes)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Away from the start, where all offsets and many weights are zero.
            parameter.data += torch.randn(parameter.shape) * 0.1
    return model


def drive(steps=3, rows=2, **changes):
    """Frames of vehicles that turn and drive, each on its own way."""
    frames = []
    for step in range(steps):
        poses = [turned(0.1 * step * (row + 1), x=2.0 * step, y=100.0 * row) for row in range(rows)]
        frames.append(frame_of(poses, times_s=[0.5 * step] * rows, seed=step, **changes))
    return frames


def run(model, frames, state=None):
    outputs = []
    with torch.no_grad():
        for frame in frames:
            out, state = model(frame, state)
            outputs.append(out)
    return outputs, state


@pytest.mark.parametrize("compat", [None, "official"])
def test_a_batch_of_two_rigs_equals_two_batches_of_one(compat):
    model = model_of(network={"compat": compat}).double()
    frames = drive(dtype=torch.float64)
    # Row 1 has other cameras.
    frames = [
        MultiCameraBatch(
            f.images, f.rig.with_image_affine(torch.stack([torch.eye(3), torch.eye(3) * 0.8])[:, None])
        )
        for f in frames
    ]
    together, state = run(model, frames)
    for row in range(2):
        alone, own_state = run(model, [row_of(frame, row) for frame in frames])
        for a, b in zip(together, alone, strict=True):
            assert torch.allclose(a.bev[row], b.bev[0], atol=1e-10)
            assert torch.allclose(a.boxes.centers_ref_m[row], b.boxes.centers_ref_m[0], atol=1e-9)
        for name, tensor in own_state.items():
            assert torch.allclose(tensor[0].double(), state[name][row].double(), atol=1e-10)


def test_the_first_frame_is_the_static_model_and_time_matters_later():
    model = model_of()
    first, second = drive(2)
    (a,), state = run(model, [first])
    (b,), _ = run(model, [first], model.stream().init(2))
    assert torch.allclose(a.bev, b.bev, atol=1e-6)
    with_past, without = run(model, [second], state)[0][0], run(model, [second])[0][0]
    assert not torch.allclose(with_past.bev, without.bev, atol=1e-3)


def test_rows_begin_anew_where_they_are_told_to():
    model = model_of()
    frames = drive(2)
    _, state = run(model, frames[:1])
    restarted = MultiCameraBatch(frames[1].images, frames[1].rig, starts=torch.tensor([True, False]))
    (mixed,), _ = run(model, [restarted], state)
    fresh, followed = run(model, frames[1:])[0][0], run(model, frames[1:], state)[0][0]
    assert torch.allclose(mixed.bev[0], fresh.bev[0], atol=1e-5)
    assert torch.allclose(mixed.bev[1], followed.bev[1], atol=1e-5)


def test_order_of_the_rows_does_not_matter():
    model = model_of()
    frames = drive(2, rows=3)
    order = torch.tensor([2, 0, 1])
    from allsight.types.batches import map_tensors

    shuffled = [map_tensors(lambda tensor: tensor[order], frame) for frame in frames]
    a, b = run(model, frames)[0][-1], run(model, shuffled)[0][-1]
    assert torch.allclose(a.bev[order], b.bev, atol=1e-5)


def test_memory_can_be_saved_and_is_not_changed():
    model = model_of()
    first, second = drive(2)
    _, state = run(model, [first])
    before = {name: tensor.clone() for name, tensor in state.items()}
    expected = run(model, [second], state)[0][0].bev
    assert all(torch.equal(before[name], tensor) for name, tensor in state.items())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert torch.equal(run(model, [second], again)[0][0].bev, expected)
    assert not any(tensor.requires_grad for tensor in state.values())


def test_cameras_in_another_order_with_their_embeddings_give_the_same_map():
    model = model_of().double()
    (frame,) = drive(1, dtype=torch.float64)
    order = torch.tensor([2, 3, 1, 0])
    shuffled = MultiCameraBatch(frame.images[:, order], frame.rig.with_cameras(order))
    expected = run(model, [frame])[0][0].bev
    assert not torch.allclose(run(model, [shuffled])[0][0].bev, expected, atol=1e-6)
    embeddings = model.network.encoder.camera_embed
    embeddings.data = embeddings.data[order]
    assert torch.allclose(run(model, [shuffled])[0][0].bev, expected, atol=1e-12)


def test_without_camera_embeddings_any_number_of_cameras_will_do():
    model = model_of(network={"cameras": 0})
    for cameras in (1, 5, 7):
        run(model, drive(1, cameras=cameras))
    with pytest.raises(ValueError, match="cameras=0 to do"):
        run(model_of(), drive(1, cameras=5))


def test_a_missing_camera_is_as_if_it_did_not_exist_whatever_its_pixels():
    model = model_of().train()
    (frame,) = drive(1)
    present = torch.ones(2, 4, dtype=torch.bool)
    present[:, 3] = False
    from dataclasses import replace

    broken = frame.images.clone()
    broken[:, 3] = float("nan")
    without = MultiCameraBatch(frame.images[:, :3], frame.rig.with_cameras(torch.arange(3)))
    missing = MultiCameraBatch(broken, replace(frame.rig, is_present=present))
    out, _ = model(missing)
    assert torch.allclose(out.bev, model(without)[0].bev, atol=1e-5)
    out.bev.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_padding_of_smaller_pictures_is_never_looked_at():
    model = model_of()
    (frame,) = drive(1, rows=1)
    wide = torch.full((1, 4, 3, 32, 64), 1e4)
    wide[..., :48] = frame.images
    valid = torch.tensor([32, 48]).expand(1, 4, 2)
    _, hits = model.network.encoder.see(frame.rig, (32, 64), valid)
    _, expected = model.network.encoder.see(frame.rig, (32, 48))
    assert torch.equal(hits, expected)
    assert bool(hits.any())


def test_pictures_that_fill_their_frame_in_part_stand_among_zeros():
    """Normalised before they are padded, as in the release: black is no zero."""
    model = model_of()
    (frame,) = drive(1, rows=1)
    small = torch.randint(0, 256, (1, 4, 3, 32, 48), dtype=torch.uint8)
    padded = torch.full((1, 4, 3, 32, 64), 77, dtype=torch.uint8)
    padded[..., :48] = small
    seen = []
    model.network.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(MultiCameraBatch(padded, frame.rig, valid_hw_px=torch.tensor([32, 48]).expand(1, 4, 2)))
    own = model.network.backbone.normalise(small.flatten(0, 1))
    assert torch.equal(seen[0][..., :48], own)
    assert not seen[0][..., 48:].any()


def test_the_release_counts_padding_as_seen():
    valid = torch.tensor([32, 40]).expand(1, 4, 2)
    (frame,) = drive(1, rows=1)
    for compat in (None, "official"):
        model = model_of(network={"compat": compat})
        with mock.patch.object(
            model.network.encoder, "forward", wraps=model.network.encoder.forward
        ) as encode:
            model(MultiCameraBatch(frame.images, frame.rig, valid_hw_px=valid))
        assert (encode.call_args.args[4] is None) == (compat == "official")


def turn_map(cells, hw):
    """A map turned by 90 degrees against the clock: rows grow with y, so that is rot90 the other way."""
    return torch.rot90(cells.unflatten(1, hw), -1, (1, 2)).flatten(1, 2)


def test_turning_the_world_turns_the_map():
    """9.5: attention to cameras alone, with the same query everywhere."""
    model = model_of(network={"bev_hw": (12, 12), "cameras": 0}).double()
    encoder = model.network.encoder
    quarter = turned(torch.pi / 2)[None]
    (frame,) = drive(1, rows=1, dtype=torch.float64)
    features = torch.randn(1, 4, 16, 8, 12, dtype=torch.float64)
    value, shapes = encoder._value([features])
    query = torch.randn(1, 1, 16, dtype=torch.float64).expand(1, 144, 16)
    maps = []
    for rig in (frame.rig, frame.rig.with_ref_affine(quarter)):
        seen = encoder._seen(rig, (32, 48), None, like=features)
        maps.append(encoder.layers[0].spatial(query, value, shapes, seen))
    assert torch.allclose(maps[1], turn_map(maps[0], (12, 12)), atol=1e-12)
    assert not torch.allclose(maps[1], maps[0], atol=1e-3)


def test_a_point_painted_into_the_pictures_is_found_on_its_ray():
    """9.6: with no offsets and equal weights the brightest cell lies in the point's direction."""
    model = model_of(network={"bev_hw": (64, 64), "cameras": 0, "heads": 1})
    encoder = model.network.encoder
    spatial = encoder.layers[0].spatial
    with torch.no_grad():
        for parameter in spatial.parameters():
            parameter.zero_()
        for linear in (spatial.value_proj, spatial.output_proj):
            linear.weight.copy_(torch.eye(16))
    generator = torch.Generator().manual_seed(0)
    height, width = 225, 408
    from allsight.types import CameraRig

    eye = torch.eye(4)[None]
    rig = CameraRig(ring(6, width, height, 320.0)[None].float(), eye, eye, torch.zeros(1))
    bearings = []
    for _ in range(7):
        angle = float(torch.rand((), generator=generator)) * 2 * torch.pi
        far = 8 + 20 * float(torch.rand((), generator=generator))
        point = torch.tensor([[[far, 0.0, 0.7]]]) @ turned(angle)[:3, :3].float().T
        pixels, depth = rig.project(point)
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        blob = torch.exp(-((x - pixels[0, :, :, :1]) ** 2 + (y - pixels[0, :, :, 1:]) ** 2) / (2 * 3.0**2))
        blob = blob * (depth[0, :, :, None] > 0)
        value = blob.flatten(1)[None, :, :, None].expand(1, 6, -1, 16).flatten(0, 1)
        seen = encoder._seen(rig, (height, width), None, like=value)
        cells = spatial(torch.zeros(1, 64 * 64, 16), value, ((height, width),), seen)
        best = encoder.grid.centers_m(cells)[cells[0, :, 0].argmax()]
        difference = torch.atan2(best[1], best[0]) - torch.atan2(point[0, 0, 1], point[0, 0, 0])
        bearings.append(abs((float(difference) + torch.pi) % (2 * torch.pi) - torch.pi))
    assert sorted(bearings)[len(bearings) // 2] < 0.01
    assert max(bearings) < 0.06


def truth_of(rows=2):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    return [
        Boxes3D(
            draw(n, 3) * 30 - 15,
            draw(n, 3) * 3 + 0.5,
            draw(n) * 6 - 3,
            torch.full((n, 2), float("nan")) if n == 1 else draw(n, 2),
            torch.arange(n) % 10,
        )
        for n in (3, 0, 1)[:rows]
    ]


def loss_of(outputs, truth, grid):
    losses = detection_3d_losses(outputs.logits, outputs.codes, truth)
    heat = center_loss(outputs.heatmap, center_targets(truth, grid, 10, outputs.heatmap))
    return sum(loss.sum() for loss in losses.values()) + heat


def test_gradients_reach_everything_that_learns():
    model = model_of().train()
    frames = drive(2)
    _, state = model(frames[0])
    out, _ = model(frames[1], state)
    loss_of(out.detection, truth_of(), model.head.grid).backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # The start of peaks' heights only feeds places; the last layer's result is there for nobody.
    assert without == set()
    with pytest.raises(ValueError, match=r"model\.eval"):
        _ = out.boxes


def test_history_of_a_clip_runs_without_gradient_and_as_in_evaluation():
    model = model_of(network={"drop": 0.5}).train()
    frames = [MultiCameraBatch(f.images.requires_grad_(), f.rig) for f in drive(3)]
    (out,), state = model.clip(frames)
    out.bev.sum().backward()
    assert [f.images.grad is not None for f in frames] == [False, False, True]
    assert model.training and all(m.training for m in model.network.encoder.layers.modules())
    assert not state["bev"].requires_grad
    # Dropout would make two runs differ.
    memories = []
    for _ in range(2):
        with torch.no_grad():
            model.network.eval()
            memories.append(model.clip(frames[:2])[1]["bev"])
    assert torch.equal(*memories)


def test_gradient_goes_back_through_as_many_frames_as_asked():
    model = model_of(network={"gradient_frames": 2, "clip_loss": "all"}).train()
    frames = [MultiCameraBatch(f.images.requires_grad_(), f.rig) for f in drive(3)]
    outputs, _ = model.clip(frames)
    assert len(outputs) == 2
    outputs[-1].bev.sum().backward()
    assert [f.images.grad is not None for f in frames] == [False, True, True]


def test_a_clip_equals_its_frames_one_by_one():
    model = model_of()
    frames = drive(3)
    one_by_one, state = run(model, frames)
    with torch.no_grad():
        (last,), clip_state = model.clip(frames)
    assert torch.equal(last.bev, one_by_one[-1].bev)
    assert torch.equal(clip_state["bev"], state["bev"])


def test_a_stream_counts_its_frames_and_keeps_the_size_of_its_memory():
    model = model_of()
    stream = model.stream()
    assert isinstance(stream, BEVStream)
    frames = drive(6, rows=1)
    stream.warm_up(frames[0], 1)
    assert stream.latency() == {"frames": 0.0}
    state = stream.init()
    sizes = set()
    for frame in frames:
        out, state = stream.step(frame, state)
        sizes.add(tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()))
    assert len(sizes) == 1
    assert stream.latency()["frames"] == 6
    assert {"mean_s", "median_s", "p95_s", "last_s"} < set(stream.latency())
    expected, _ = run(model, frames)
    assert torch.allclose(out.bev, expected[-1].bev, atol=1e-5)


def operations(model, frame, state):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.calls = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Count() as count, torch.no_grad():
        _, state = model(frame, state)
    return count.calls, state


def test_a_step_does_the_same_work_at_every_frame():
    model = model_of()
    state = model.stream().init(1)
    counted = []
    for frame in drive(3, rows=1):
        calls, state = operations(model, frame, state)
        counted.append(calls)
    assert counted[0] == counted[1] == counted[2]


def test_the_step_of_tensors_exports_with_explicit_state():
    # Export takes its time with every layer, and all layers are alike.
    model = model_of(network={"cameras": 4, "layers": 1}, head={"layers": 1})
    step = BEVStep(model.network, model.head)
    frames = drive(2, rows=1)
    state = model.stream().init(1)
    _, state = model.stream().step(frames[0], state)

    def arguments(frame, state):
        rig = frame.rig
        return (
            frame.images,
            rig.img_from_ref,
            rig.ego_from_ref,
            rig.world_from_ref,
            rig.time_s,
            *state.values(),
        )

    assert tuple(state) == ("bev", "has_past", "time_s", "world_from_ref") == step.state_names
    exported = torch.export.export(step, arguments(frames[0], model.stream().init(1)))
    found = exported.module()(*arguments(frames[1], state))
    expected, new_state = model.stream().step(frames[1], state)
    assert torch.allclose(found[0], expected.boxes.centers_ref_m, atol=1e-4)
    assert torch.allclose(found[6], new_state["bev"], atol=1e-4)


class Task:
    def __init__(self, **changes):
        self.changes = changes

    def head(self, features):
        (spec,) = features
        return DetectionHead(DetectionHead.Config(**{**HEAD, **self.changes}), spec)

    def cast(self, batch):
        raise NotImplementedError


def batch_of(*frames, task="boxes", rows=2):
    inputs = {"rig": frames[-1], **({"history": frames[:-1]} if len(frames) > 1 else {})}
    return Batch(task, tuple("ab"[:rows]), inputs, starts=torch.tensor([True] * rows))


def test_the_engine_drives_one_head_per_task():
    model = model_for_tasks(config(), {"boxes": Task(), "others": Task(num_classes=3)})
    assert isinstance(model, TrainableBEVFormer)
    frames = drive(3)
    outputs, state = model(batch_of(frames[0]))
    assert outputs.logits.shape[-1] == 10
    follow = Batch("others", ("a", "b"), {"rig": frames[1]}, starts=torch.tensor([False, False]))
    outputs, state = model(follow, state)
    assert outputs.logits.shape[-1] == 3
    assert all(len(tensor) == 2 and not tensor.requires_grad for tensor in state.values())
    outputs, _ = model(batch_of(*frames))
    outputs.logits.sum().backward()
    assert all(p.grad is None for p in model.heads["others"].parameters())
    with pytest.raises(ValueError, match="needs a MultiCameraBatch"):
        model(batch_of(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="no head for task 'x'"):
        model(batch_of(frames[0], task="x"))


def test_every_frame_that_learns_is_answered_if_asked():
    model = model_for_tasks(config(network={"gradient_frames": 2, "clip_loss": "all"}), {"boxes": Task()})
    outputs, _ = model(batch_of(*drive(3)))
    assert isinstance(outputs, tuple) and len(outputs) == 2


def test_autocast_keeps_places_precise():
    model = model_of()
    frames = drive(2)
    expected, _ = run(model, frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = run(model, frames)
    codes = found[-1].detection.codes
    assert codes.dtype == torch.float32
    # Features are rounded, so boxes differ; but a place is no multiple of what bfloat16 can tell apart.
    assert not torch.equal(codes, codes.bfloat16().float())
    difference = (found[-1].bev.float() - expected[-1].bev).norm() / expected[-1].bev.norm()
    assert float(difference) < 0.1


def test_internimage_serves_as_backbone():
    backbone = InternImage.Config.variant("nano", out_stages=(1, 2))
    model = model_of(network={"backbone": backbone, "levels": 3})
    out, _ = model(drive(1)[0])
    assert out.boxes.scores.shape == (2, 8)


def test_settings_that_do_not_fit_are_refused():
    for changes, match in (
        ({"heads": 3}, "expected a divisor of channels=16"),
        ({"camera_points": 6}, "expected a multiple of the 4 heights"),
        ({"alias_shift": True}, "only with compat='official'"),
        ({"range_m": (1.0, 0, 0, 0, 1, 1)}, "minimum < maximum"),
    ):
        with pytest.raises(ConfigError, match=match):
            config(network=changes)
    model = model_of()
    _, state = run(model, drive(1, rows=1))
    with pytest.raises(ValueError, match="state: expected a map"):
        run(model, drive(1, rows=2), state)


def test_small_starts_look_at_their_own_place_first():
    """`first_px` 0: the first point of every head stands where the cell (or query) is."""
    model = BEVFormer(config(network={"first_px": 0, "embed_std": 0.05}, head={"first_px": 0}))
    encoder, decoder = model.network.encoder, model.head.layers[0]
    for part, levels in (
        (encoder.layers[0].temporal, 2),
        (encoder.layers[0].spatial, 1),
        (decoder.cross_attn, 1),
    ):
        offsets = part.sampling_offsets.bias.detach().view(2, levels, -1, 2).norm(dim=-1)
        assert torch.allclose(offsets, torch.arange(offsets.shape[-1]).float().expand_as(offsets), atol=1e-6)
    for embedding in (encoder.queries, encoder.level_embed, encoder.camera_embed):
        assert 0.03 < float(embedding.detach().std()) < 0.07
    assert float(encoder.motion(torch.randn(5, 8)).detach().abs().max()) < 0.3


def test_the_published_alignment_refuses_a_world_that_is_moved():
    official = config(network={"compat": "official"})
    task = BEVDetection(BEVDetection.Config(data="nuscenes:nowhere", turn_rad=0.3, mirror=0.0), name="boxes")
    with pytest.raises(ConfigError, match=r"tasks\.boxes\.turn_rad: .* set turn_rad=0"):
        TrainableBEVFormer(official, {"boxes": task})
