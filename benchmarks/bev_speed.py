"""What does BEVFormer cost on a CPU: its encoder, a larger batch, a streaming step, a training step?

    python benchmarks/bev_speed.py
    python benchmarks/bev_speed.py --only encoder --pairs 5
    python benchmarks/bev_speed.py --quick                 # micro in place of tiny, 3 pairs: does it run?

- `encoder`: the encoder on the compiled operator against the same gathered encoder on this package's plain
  PyTorch, and against a loop over cameras in which every cell looks into every camera and is masked after.
- `batch`: four rows against one.
- `stream`: operators and bytes of the 2nd and the 200th frame.
- `launches`: operators of a training step that launch a kernel (those without others below them that do;
  views and bookkeeping left out), against a naive twin: attention camera by camera on plain PyTorch, matching
  and losses layer by layer, weights updated tensor by tensor.

Geometry is a ring of six cameras; pictures and weights are random.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _page import RESULTS, setting_of, write_page
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from allsight import ops
from allsight.engine.optim import AdamW
from allsight.launch.bench.measure import interleave
from allsight.layers.spatial_cross_attention import SeenCells, SpatialCrossAttention, predict_offsets
from allsight.models import BEVFormer
from allsight.objectives import detection_3d_losses
from allsight.types import Boxes3D, CameraRig, MultiCameraBatch

PARTS = ("encoder", "batch", "stream", "launches")
# Views and bookkeeping launch nothing.
# fmt: off
_VIEWS = {
    "view", "reshape", "expand", "permute", "transpose", "select", "slice", "unsqueeze", "squeeze",
    "as_strided", "detach", "unflatten", "flatten", "split", "chunk", "unbind", "alias", "t", "narrow",
    "resolve_conj", "resolve_neg", "_unsafe_view", "contiguous", "to", "lift_fresh", "item", "view_as",
    "expand_as", "split_with_sizes", "_reshape_alias", "as_strided_", "detach_", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "resize_", "resize_as_", "set_", "promote_types",
    "result_type", "_nnpack_available", "_local_scalar_dense", "is_nonzero", "_to_copy",
}
# fmt: on


def frame(hw_px: tuple[int, int], rows: int = 1, number: int = 0, cameras: int = 6) -> MultiCameraBatch:
    """Random pictures of a ring of cameras that drives ahead."""
    height, width = hw_px
    matrices = []
    for camera in range(cameras):
        turn = -2 * math.pi * camera / cameras
        right = [math.cos(turn), math.sin(turn), 0.0]
        ahead = [-math.sin(turn), math.cos(turn), 0.0]
        pose = torch.tensor([[*right, 0.0], [0.0, 0.0, -1.0, 1.6], [*ahead, 0.0]], dtype=torch.float64)
        focal = 0.72 * width
        lens = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
        matrices.append(lens @ pose)
    world = torch.eye(4, dtype=torch.float64).repeat(rows, 1, 1)
    world[:, 1, 3] = 2.0 * number
    images = torch.randn(rows, cameras, 3, *hw_px, generator=torch.Generator().manual_seed(number))
    rig = CameraRig(
        torch.stack(matrices).expand(rows, -1, -1, -1).contiguous(),
        torch.eye(4, dtype=torch.float64).repeat(rows, 1, 1),
        world,
        torch.full((rows,), 0.5 * number, dtype=torch.float64),
    )
    return MultiCameraBatch(images, rig)


def camera_by_camera(
    self: SpatialCrossAttention, query: Tensor, value: Tensor, shapes: object, seen: SeenCells
) -> Tensor:
    """Spatial attention as a loop over cameras and rows in which all cells look and are masked afterwards.

    Gives the same as `SpatialCrossAttention.forward`.
    """
    rows, cells, _ = query.shape
    heads, heights = self.heads, seen.places.shape[2]
    total = query.new_zeros(query.shape)
    cameras = len(seen.cells) // rows
    for row in range(rows):
        for camera in range(cameras):
            n = row * cameras + camera
            own = (seen.cells[n] - row * cells)[seen.is_seen[n]]
            places = query.new_full((1, cells, heights, 2), -1.0)
            places[0, own] = seen.places[n][seen.is_seen[n]]
            offsets = predict_offsets(self.sampling_offsets, query[row : row + 1])
            offsets = offsets.unflatten(-1, (heads, self.levels, self.points // heights, heights, 2))
            sizes = query.new_tensor([[w, h] for h, w in shapes])[:, None, None]  # pyright: ignore
            at = (places[:, :, None, None, None] + offsets / sizes).flatten(4, 5)
            weights = self.attention_weights(query[row : row + 1])
            looked = ops.ms_deform_attn(
                self.value_proj(value[n : n + 1]).unflatten(-1, (heads, self.channels // heads)),
                shapes,  # pyright: ignore[reportArgumentType]
                at,
                weights.unflatten(-1, (heads, self.levels, self.points)),
                softmax=True,
            )
            mask = torch.zeros(cells, 1)
            mask[own] = 1
            total[row] = total[row] + looked[0] * mask
    mean = total / seen.cameras.clamp_min(1)[..., None].to(total.dtype)
    return self.drop(self.output_proj(mean))


def encoder_part(model: BEVFormer, hw_px: tuple[int, int], pairs: int) -> list[list[str]]:
    network = model.network.eval()
    first, second = frame(hw_px), frame(hw_px, number=1)
    with torch.no_grad():
        _, state = network(first)
        images = second.images.flatten(0, 1)
        maps = [x.unflatten(0, second.images.shape[:2]) for x in network.neck(network.backbone(images))]
        past = network.memory.recall(state, second.rig, None, maps[0])

    def run() -> Tensor:
        with torch.no_grad():
            return network.encoder(maps, second.rig, hw_px, past)

    def reference() -> Tensor:
        with ops.use_backend("reference"):
            return run()

    def dense() -> Tensor:
        with mock.patch.object(SpatialCrossAttention, "forward", camera_by_camera):
            return reference()

    off = max(float((run() - other()).norm() / run().norm()) for other in (reference, dense))
    timed = interleave({"cpu": run, "reference": reference, "loop": dense}, pairs=pairs)
    cpu, ref, loop = (_median(timed.seconds[name]) for name in ("cpu", "reference", "loop"))
    return [
        ["encoder, s", f"{cpu:.3f}", ""],
        ["the same on the reference operator / encoder", f"{ref / cpu:.2f}", ">= 2.2"],
        ["loop over cameras on the reference operator / encoder", f"{loop / cpu:.2f}", ""],
        ["largest relative difference", f"{off:.1e}", "<= 1e-4"],
    ]


def batch_part(model: BEVFormer, hw_px: tuple[int, int], pairs: int) -> list[list[str]]:
    model.eval()
    frames = {rows: frame(hw_px, rows) for rows in (1, 4)}

    def run(rows: int) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return model(frames[rows])

        return call

    timed = interleave({"1": run(1), "4": run(4)}, pairs=pairs)
    ratio = _median(timed.seconds["4"]) / _median(timed.seconds["1"])
    return [["batch of 4 / batch of 1", f"{ratio:.2f}", "<= 4.2"]]


def stream_part(model: BEVFormer, hw_px: tuple[int, int], last: int) -> list[list[str]]:
    stream = model.stream()
    state = stream.init()
    found = {}
    for number in range(last):
        now = frame(hw_px, number=number)
        if number in (1, last - 1):
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
                _, state = stream.step(now, state)
            events = trace.key_averages()
            made = sum(max(event.self_cpu_memory_usage, 0) for event in events)
            found[number] = (sum(event.count for event in events), made)
        else:
            _, state = stream.step(now, state)
    (first, first_bytes), (end, end_bytes) = found[1], found[last - 1]
    return [
        ["operators of frame 2", str(first), ""],
        [f"operators of frame {last} - those of frame 2", str(end - first), "= 0"],
        [f"bytes allocated by frame {last} / frame 2", f"{end_bytes / first_bytes:.4f}", "= 1"],
    ]


def launches_part(model: BEVFormer, hw_px: tuple[int, int]) -> list[list[str]]:
    """Forward, losses and backward of one frame with memory."""
    model.train()
    first, second = frame(hw_px), frame(hw_px, number=1)
    with torch.no_grad():
        _, state = model(first)
    count = 12
    truth = [
        Boxes3D(
            torch.randn(count, 3) * 10,
            torch.rand(count, 3) + 1,
            torch.rand(count),
            torch.randn(count, 2),
            torch.arange(count) % 10,
        )
    ]

    trained = [p for p in model.parameters() if p.requires_grad]
    # Rates of 0: the same weights are measured again and again.
    together = AdamW(AdamW.Config(fused=True)).make([{"params": trained}], lr=0.0)
    one_by_one = torch.optim.AdamW(trained, lr=0.0, foreach=False)

    def own() -> None:
        model.zero_grad()
        found = model(second, state)[0].detection
        losses = detection_3d_losses(found.logits, found.codes, truth)
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()

    def naive() -> None:
        model.zero_grad()
        with (
            mock.patch.object(SpatialCrossAttention, "forward", camera_by_camera),
            ops.use_backend("reference"),
        ):
            found = model(second, state)[0].detection
            losses = []
            for layer in range(len(found.logits)):
                one = slice(layer, layer + 1)
                losses += detection_3d_losses(found.logits[one], found.codes[one], truth).values()
            torch.stack([loss.sum() for loss in losses]).sum().backward()

    passes = launches(own), launches(naive)
    updates = launches(together.step), launches(one_by_one.step)
    ours, theirs = (sum(pair) for pair in zip(passes, updates, strict=True))
    return [
        ["launches of a training step: passes and losses + update", f"{passes[0]} + {updates[0]}", ""],
        ["the same of the naive twin", f"{passes[1]} + {updates[1]}", ""],
        ["ratio of whole steps", f"{ours / theirs:.3f}", "<= 0.333"],
        ["ratio without the update", f"{passes[0] / passes[1]:.3f}", ""],
    ]


def launches(work: Callable[[], object]) -> int:
    """Operators that launch something and consist of no others that do."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        work()

    def within(event: Any) -> int:
        inner = sum(within(child) for child in event.cpu_children)
        is_operator = event.name.startswith(("aten::", "allsight::"))
        return inner or int(is_operator and event.name.removeprefix("aten::") not in _VIEWS)

    return sum(within(event) for event in trace.events() or () if event.cpu_parent is None)


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(list(values)).median())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="BEVFormer-micro, 3 pairs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    variant, hw_px = ("micro", (96, 160)) if chosen.quick else ("tiny", (480, 800))
    pairs = 3 if chosen.quick else chosen.pairs
    model = BEVFormer(BEVFormer.Config.variant(variant))
    rows = [["what", "figure", "bar"], ["---", "---", "---"]]
    if "encoder" in chosen.only:
        rows += encoder_part(model, hw_px, pairs)
    if "batch" in chosen.only:
        rows += batch_part(model, hw_px, max(3, pairs // 4))
    if "stream" in chosen.only:
        small = model if chosen.quick else BEVFormer(BEVFormer.Config.variant("micro"))
        rows += stream_part(small, (96, 160), 20 if chosen.quick else 200)
    if "launches" in chosen.only:
        rows += launches_part(model, hw_px)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    method = f"BEVFormer-{variant}, six pictures of {hw_px[0]} x {hw_px[1]}, one thread, CPU time"
    title = "What BEVFormer costs on a CPU"
    write_page("bev_speed", title, setting_of(__file__, method), [table], chosen.out)


if __name__ == "__main__":
    main()
