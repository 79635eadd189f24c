"""Leaf modules with plain keyword arguments, like those of torch.nn."""

from allsight.layers.activation import ActivationName, make_activation
from allsight.layers.attention import AttentionPool
from allsight.layers.attention_block import AttentionBlock, TokenNormName, make_token_norm
from allsight.layers.conv import ConvLast
from allsight.layers.dcnv3 import DCNv3
from allsight.layers.dcnv4 import DCNv4
from allsight.layers.deform_conv import DeformConv2d
from allsight.layers.drop import DropPath
from allsight.layers.experts import (
    ExpertLinear,
    RunMix,
    TokenMix,
    apply_linear,
    balance_loss,
    choose_experts,
    limit_load,
    router_z_loss,
)
from allsight.layers.fpn import FPN
from allsight.layers.inference import prepare_for_inference
from allsight.layers.mlp import MLP
from allsight.layers.ms_deform_attn import MSDeformAttn
from allsight.layers.norm import (
    BatchNormLast,
    FrozenBatchNorm2d,
    NormName,
    SyncBatchNormLast,
    make_norm,
    without_statistics,
)
from allsight.layers.positions import grid_places, sincos, sincos_2d
from allsight.layers.precision import in_float32
from allsight.layers.remat import Remat, is_recomputing, recompute
from allsight.layers.self_attention import KeyValues, SelfAttention
from allsight.layers.spatial_cross_attention import SeenCells, SpatialCrossAttention, find_seen_cells
from allsight.layers.temporal_self_attention import TemporalSelfAttention

__all__ = [
    "FPN",
    "MLP",
    "ActivationName",
    "AttentionBlock",
    "AttentionPool",
    "BatchNormLast",
    "ConvLast",
    "DCNv3",
    "DCNv4",
    "DeformConv2d",
    "DropPath",
    "ExpertLinear",
    "FrozenBatchNorm2d",
    "KeyValues",
    "MSDeformAttn",
    "NormName",
    "Remat",
    "RunMix",
    "SeenCells",
    "SelfAttention",
    "SpatialCrossAttention",
    "SyncBatchNormLast",
    "TemporalSelfAttention",
    "TokenMix",
    "TokenNormName",
    "apply_linear",
    "balance_loss",
    "choose_experts",
    "find_seen_cells",
    "grid_places",
    "in_float32",
    "is_recomputing",
    "limit_load",
    "make_activation",
    "make_norm",
    "make_token_norm",
    "prepare_for_inference",
    "recompute",
    "router_z_loss",
    "sincos",
    "sincos_2d",
    "without_statistics",
]
