"""What a world is asked to be: size of pictures, how many, and how hard."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator

from allsight.config import Config, Configured, Variants


class World(Configured):
    """The embedded world; `generate_world` writes it."""

    variants: ClassVar[Variants] = {
        "easy": {
            "objects": (1, 3),
            "occlusion": 0.0,
            "texture": 0.0,
            "clutter": 0.0,
            "noise": 0.0,
            "colour_similarity": 0.0,
        },
        "normal": {
            "objects": (2, 5),
            "occlusion": 0.5,
            "texture": 0.5,
            "clutter": 0.4,
            "noise": 0.25,
            "colour_similarity": 0.1,
        },
        "hard": {
            "objects": (4, 9),
            "occlusion": 0.7,
            "texture": 0.7,
            "clutter": 1.0,
            "noise": 0.7,
            "colour_similarity": 0.6,
        },
    }

    class Config(Config):
        """Options of a world; the defaults are the variant "normal".

        Args:
            seed: Everything follows from it.
            size_px: Side of the square pictures.
            train: Pictures each stream has in its training split (at least one for each of the 12 classes).
            val: Pictures each stream has in its validation split.
            objects: Fewest and most objects of a scene. Where so many find no place, a scene has fewer.
            occlusion: Largest part of an object that others may hide; also how often one is put where it
                overlaps another.
            texture: Share of objects with stripes, dots or checks.
            clutter: 0 to 1: stones, hills, clouds, and pictures on the wall.
            noise: 0 to 1: noise of the camera; 1 is plus or minus 40 grey levels.
            colour_similarity: 0 to 1: how far the objects' colours are drawn towards the colour of the
                ground.
            jpeg_quality: 1 to 100.
        """

        seed: int = Field(default=0, ge=0, lt=2**63)
        size_px: int = Field(default=96, ge=32, le=256)
        train: int = Field(default=2000, ge=12, le=10_000_000)
        val: int = Field(default=400, ge=12, le=10_000_000)
        objects: tuple[int, int] = (2, 5)
        occlusion: float = Field(default=0.5, ge=0.0, le=0.8)
        texture: float = Field(default=0.5, ge=0.0, le=1.0)
        clutter: float = Field(default=0.4, ge=0.0, le=1.0)
        noise: float = Field(default=0.25, ge=0.0, le=1.0)
        colour_similarity: float = Field(default=0.1, ge=0.0, le=1.0)
        jpeg_quality: int = Field(default=92, ge=1, le=100)

        @field_validator("objects")
        @classmethod
        def _objects_in_order(cls, objects: tuple[int, int]) -> tuple[int, int]:
            if not 1 <= objects[0] <= objects[1] <= 20:
                raise ValueError("expected fewest <= most, both from 1 to 20")
            return objects
