"""The past in the present frame: a still world must stay where it is, whatever the vehicle does."""

import math

import pytest
import torch
from rigs import ring, turned

from allsight.models.bevformer.alignment import (
    official_can_bus,
    official_can_bus_since,
    official_rotation,
    official_shift,
    warp_past,
)
from allsight.models.bevformer.memory import Memory, OfficialRules
from allsight.types import BEVGrid, CameraRig, relative_pose

SQUARE = BEVGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (60, 60))
ODD = BEVGrid((-30.0, -20.0, -3.0, 60.0, 25.0, 5.0), (45, 90))


def world(x, y):
    """A smooth texture fixed in the world."""
    return torch.stack([(0.11 * x + 0.07 * y).sin(), (0.06 * x - 0.1 * y).cos(), (0.12 * y).sin()], -1)


def painted(grid, world_from_ref):
    """What a perfect encoder would draw of the texture."""
    centers = grid.centers_m(torch.zeros((), dtype=torch.float64))
    there = centers @ world_from_ref[:2, :2].T + world_from_ref[:2, 3]
    return world(there[:, 0], there[:, 1])[None]


def rig_at(world_from_ref, time_s=0.0, ego_from_ref=None):
    ego = torch.eye(4, dtype=torch.float64) if ego_from_ref is None else ego_from_ref
    time = torch.tensor([time_s], dtype=torch.float64)
    return CameraRig(ring(2)[None], ego[None], world_from_ref[None], time)


def interior_error(grid, actual, expected, margin=0.2):
    """Mean difference where the past can be known, and what doing nothing would give."""
    rows, columns = grid.hw
    cut = (
        slice(int(rows * margin), int(rows * (1 - margin))),
        slice(int(columns * margin), int(columns * (1 - margin))),
    )
    inside = lambda cells: cells.unflatten(1, grid.hw)[:, *cut]  # noqa: E731
    return float((inside(actual) - inside(expected)).abs().mean())


MOTIONS = {
    "left": (0.14, 2.0, 0.3),
    "right": (-0.14, 2.0, -0.3),
    "backwards": (0.05, -3.0, 0.0),
    "sideways": (0.0, 0.0, 1.5),
}


@pytest.mark.parametrize("grid", [SQUARE, ODD], ids=["square", "odd"])
@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS)
@pytest.mark.parametrize("heading", [0.3, math.radians(359.0), 3.1])
def test_a_still_world_stays_where_it_is(grid, motion, heading):
    yaw, x, y = motion
    before = turned(heading, x=900, y=-2000)
    now = before @ turned(yaw, x=x, y=y)
    memory = Memory(grid, 3, max_gap_s=3.0, official=None)
    state = memory.keep(painted(grid, before), rig_at(before))
    past = memory.recall(state, rig_at(now, 0.5), None, torch.zeros((), dtype=torch.float64))
    error = interior_error(grid, past.bev, painted(grid, now))
    untouched = interior_error(grid, state["bev"], painted(grid, now))
    assert error < 0.01
    assert untouched > 10 * error


@pytest.mark.parametrize("grid", [SQUARE, ODD], ids=["square", "odd"])
def test_no_motion_changes_nothing(grid):
    pose = turned(1.0, x=5, y=7)
    cells = torch.randn(1, grid.cells, 4, dtype=torch.float64)
    assert torch.allclose(warp_past(cells, relative_pose(pose[None], pose[None]), grid), cells, atol=1e-9)
    turn = torch.zeros(1, dtype=torch.float64)
    assert torch.equal(official_rotation(cells, turn, grid.hw, (100.0, 100.0)), cells)


def official_past(grid, before, now, center):
    """The official rules, with a LiDAR that looks along +y where the vehicle's axis is +x."""
    ego_from_ref = turned(-math.pi / 2)
    memory = Memory(grid, 3, max_gap_s=None, official=OfficialRules(center))
    state = memory.keep(painted(grid, before), rig_at(before, ego_from_ref=ego_from_ref))
    past = memory.recall(state, rig_at(now, 0.5, ego_from_ref), None, torch.zeros((), dtype=torch.float64))
    # The shift is where the network starts to look; here the shifted map is read off directly.
    moved = 2 * (grid.centers(past.shift) + past.shift[:, None]) - 1
    maps = past.bev.transpose(1, 2).unflatten(2, grid.hw)
    looked = torch.nn.functional.grid_sample(maps, moved.unflatten(1, grid.hw), align_corners=False)
    return looked.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("degrees", [3.0, -8.0])
def test_official_rules_hold_a_still_world_only_with_the_right_center(degrees):
    """The rules are right up to nearest neighbours, the published center only on maps of 200 cells."""
    before = turned(math.radians(359.5), x=100, y=50)
    now = before @ turned(math.radians(degrees), x=0.4, y=2.5)
    error = interior_error(SQUARE, official_past(SQUARE, before, now, (30.0, 30.0)), painted(SQUARE, now))
    wrong = interior_error(SQUARE, official_past(SQUARE, before, now, (100.0, 100.0)), painted(SQUARE, now))
    untouched = interior_error(SQUARE, painted(SQUARE, before), painted(SQUARE, now))
    assert error < 0.12
    assert error < 0.5 * untouched < wrong


def test_the_past_is_not_changed_in_place():
    before, now = turned(0.0), turned(0.2, x=3)
    for official in (None, OfficialRules()):
        memory = Memory(SQUARE, 3, max_gap_s=None, official=official)
        state = memory.keep(painted(SQUARE, before), rig_at(before))
        kept = {name: tensor.clone() for name, tensor in state.items()}
        memory.recall(state, rig_at(now, 0.5), None, torch.zeros((), dtype=torch.float64))
        assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("time_s", "starts", "follows"),
    [
        (10.5, False, True),
        (10.5, True, False),
        (9.9, False, False),
        (13.5, False, False),
        (10.0, False, True),
    ],
    ids=["next", "start", "backwards", "long gap", "same time"],
)
def test_what_follows_and_what_begins_anew(time_s, starts, follows):
    memory = Memory(SQUARE, 3, max_gap_s=3.0, official=None)
    state = memory.keep(painted(SQUARE, turned(0.0)), rig_at(turned(0.0), 10.0))
    like = torch.zeros((), dtype=torch.float64)
    past = memory.recall(state, rig_at(turned(0.1), time_s), torch.tensor([starts]), like)
    assert past.has_past.tolist() == [follows]
    assert bool(past.signals.any()) == follows


def test_rows_that_start_may_remember_anything():
    memory = Memory(SQUARE, 3, max_gap_s=3.0, official=None)
    state = memory.start(1, torch.zeros((), dtype=torch.float64))
    garbage = {
        name: torch.full_like(t, float("nan")) if t.is_floating_point() else ~t for name, t in state.items()
    }
    past = memory.recall(garbage, rig_at(turned(0.3)), torch.tensor([True]), torch.zeros(()))
    assert bool(past.bev.isfinite().all() and past.signals.isfinite().all())


def test_signals_do_not_know_the_world():
    """Turning and moving the world changes nothing that the network hears."""
    before, now = turned(0.1, x=10), turned(0.3, x=12, y=1)
    signals = []
    for world_from_world in (torch.eye(4, dtype=torch.float64), turned(2.0, x=-500, y=300)):
        memory = Memory(SQUARE, 3, max_gap_s=3.0, official=None)
        state = memory.keep(painted(SQUARE, before), rig_at(world_from_world @ before))
        rig = rig_at(world_from_world @ now, 0.5)
        signals.append(memory.recall(state, rig, None, torch.zeros((), dtype=torch.float64)).signals)
    assert torch.allclose(*signals, atol=1e-9)


def test_can_bus_from_poses_is_laid_out_as_officially():
    yaw = math.radians(350)
    now = official_can_bus(rig_at(turned(yaw, x=7, y=8, z=1)))
    assert torch.allclose(now[0, :3], torch.tensor([7.0, 8, 1]).double())
    half = torch.tensor([-math.cos(yaw / 2), 0, 0, -math.sin(yaw / 2)], dtype=torch.float64)
    assert torch.allclose(now[0, 3:7], half)
    assert now[0, 7:16].tolist() == [0.0] * 9
    assert torch.allclose(now[0, 16:], torch.tensor([yaw, 350.0], dtype=torch.float64))
    before = official_can_bus(rig_at(turned(math.radians(5), x=6, y=10, z=1)))
    since = official_can_bus_since(now, before, torch.tensor([True]))
    assert torch.allclose(since[0, :3], torch.tensor([1.0, -2, 0]).double())
    assert since[0, -1].item() == pytest.approx(345.0)  # not wrapped, as officially
    assert official_can_bus_since(now, before, torch.tensor([False]))[0, [0, 1, 2, 17]].tolist() == [0.0] * 4


def test_official_shift_is_the_way_to_the_right_and_ahead():
    """Heading north: a metre to the east is to the right."""
    can_bus = torch.zeros(1, 18, dtype=torch.float64)
    can_bus[0, :2] = torch.tensor([1.0, 3.0])
    can_bus[0, 16] = math.pi / 2
    shift = official_shift(can_bus, ODD) * torch.tensor([90.0, 45.0])
    assert torch.allclose(shift, torch.tensor([[1.0, 3.0]]).double())
