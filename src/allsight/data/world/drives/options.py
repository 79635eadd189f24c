"""What generated drives are asked to be: how many, how long, how crowded."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from allsight.config import Config, Configured, Variants


class Drives(Configured):
    """Drives through the embedded world; `generate_drives` writes them."""

    variants: ClassVar[Variants] = {
        "easy": {"objects": (4, 8), "buildings": 0.3, "noise": 0.0, "jitter": 0.0, "manoeuvres": 0.2},
        "normal": {"objects": (8, 16), "buildings": 0.7, "noise": 0.3, "jitter": 1.0, "manoeuvres": 1.0},
    }

    class Config(Config):
        """Options of drives; the defaults are the variant "normal".

        Args:
            seed: Everything follows from it.
            hw_px: Height and width of the pictures of each of the six cameras.
            train: Scenes of the training split.
            val: Scenes of the validation split.
            frames: Key frames of a scene, two a second.
            objects: Fewest and most things of a scene; a construction zone with its cones counts as one.
                Where so many find no place, a scene has fewer.
            buildings: 0 to 1: how densely the street is built up.
            manoeuvres: 0 to 1: how often the car does something else than keep its lane.
            jitter: 0 to 1: how far the cameras of a scene are off their usual mounts and lenses.
            noise: 0 to 1: noise of the cameras; 1 is plus or minus 40 grey levels.
            jpeg_quality: 1 to 100.
        """

        seed: int = Field(default=0, ge=0, lt=2**63)
        hw_px: tuple[int, int] = (96, 160)
        train: int = Field(default=200, ge=1, le=1_000_000)
        val: int = Field(default=30, ge=1, le=1_000_000)
        frames: int = Field(default=8, ge=1, le=200)
        objects: tuple[int, int] = (8, 16)
        buildings: float = Field(default=0.7, ge=0.0, le=1.0)
        manoeuvres: float = Field(default=1.0, ge=0.0, le=1.0)
        jitter: float = Field(default=1.0, ge=0.0, le=1.0)
        noise: float = Field(default=0.3, ge=0.0, le=1.0)
        jpeg_quality: int = Field(default=92, ge=1, le=100)

        @field_validator("objects")
        @classmethod
        def _objects_in_order(cls, objects: tuple[int, int]) -> tuple[int, int]:
            if not 0 <= objects[0] <= objects[1] <= 40:
                raise ValueError("expected fewest <= most, both from 0 to 40")
            return objects

        @field_validator("hw_px")
        @classmethod
        def _sizes_in_range(cls, hw_px: tuple[int, int]) -> tuple[int, int]:
            if not all(32 <= side <= 1024 for side in hw_px):
                raise ValueError("expected height and width from 32 to 1024")
            return hw_px
