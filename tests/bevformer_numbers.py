"""The small official network of the parity cases, rebuilt from its json."""

import torch
from torch import nn

from allsight.models.bevformer import official
from allsight.models.bevformer.detection import DetectionHead
from allsight.models.bevformer.encoder import BEVEncoder
from allsight.models.bevformer.memory import Memory, OfficialRules
from allsight.types import BEVGrid, BEVSpec, CameraRig

HW_PX = (480, 800)


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.norm())


class Small(nn.Module):
    """Encoder and head, named as in a whole model."""

    def __init__(self, about):
        super().__init__()
        given = about["head_constructor"]
        transformer = given["transformer"]
        channels = given["in_channels"]
        grid = BEVGrid(tuple(transformer["encoder"]["pc_range"]), (given["bev_h"], given["bev_w"]))
        rules = OfficialRules(
            tuple(transformer["rotate_center"]), transformer["rotate_prev_bev"], transformer["use_shift"]
        )
        self.network = nn.Module()
        self.network.memory = Memory(grid, channels, max_gap_s=None, official=rules)
        self.network.encoder = BEVEncoder(
            grid,
            channels,
            signals=18,
            layers=transformer["encoder"]["num_layers"],
            levels=transformer["num_feature_levels"],
            cameras=transformer["num_cams"],
            level_rows=transformer["num_feature_levels"],
            heights=transformer["encoder"]["num_points_in_pillar"],
            hidden=48,
            present="input",
        )
        config = DetectionHead.Config(
            queries=given["num_query"],
            layers=transformer["decoder"]["num_layers"],
            hidden=48,
            drop=0.0,
            num_answers=given["bbox_coder"]["max_num"],
        )
        self.head = DetectionHead(config, BEVSpec(channels, 1, grid))

    def load(self, tensors):
        names = official.names(self.state_dict())
        prefix = "pts_bbox_head."
        self.load_state_dict(
            {own: tensors[f"state_dict.{name.removeprefix(prefix)}"].float() for own, name in names.items()}
        )
        assert {f"state_dict.{name.removeprefix(prefix)}" for name in names.values()} == {
            key for key in tensors if key.startswith("state_dict.")
        }
        return self

    def gradient_of(self, official_key):
        """Gradient of the parameter with this official name, without `pts_bbox_head.`."""
        for own, name in official.names(self.state_dict()).items():
            if name == f"pts_bbox_head.{official_key}":
                return self.get_parameter(own).grad
        raise KeyError(official_key)


def rig_of_case(tensors, case):
    """The cameras, and an absolute CAN-bus vector whose changes since `before_case` are those given."""
    lidar2img = tensors[f"{case}.lidar2img"]
    eye = torch.eye(4, dtype=torch.float64).expand(len(lidar2img), 4, 4)
    can_bus = tensors[f"{case}.can_bus"]
    return CameraRig(
        lidar2img[:, :, :3], eye, eye, torch.zeros(len(lidar2img), dtype=torch.float64), can_bus=can_bus
    )


def past_of(memory, tensors, case, dtype):
    """The state whose recall gives the case's relative CAN-bus vector."""
    can_bus = tensors[f"{case}.can_bus"]
    if f"{case}.prev_bev" not in tensors:
        return None
    before = can_bus.clone()
    before[:, :3] = 0
    before[:, -1] = 0
    return {
        "bev": tensors[f"{case}.prev_bev"].to(dtype),
        "has_past": torch.ones(len(can_bus), dtype=torch.bool),
        "time_s": torch.zeros(len(can_bus), dtype=torch.float64),
        "can_bus": before,
    }
