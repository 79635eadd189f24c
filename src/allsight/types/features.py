"""What a backbone announces about its outputs, so that heads never guess."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSpec:
    """One feature map: `channels` of it, and how many input pixels one of its cells spans (`stride`)."""

    channels: int
    stride: int
