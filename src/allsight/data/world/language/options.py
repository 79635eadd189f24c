"""What the language world is asked to be: how many pictures, how large, with how many objects."""

from __future__ import annotations

from pydantic import Field, field_validator

from allsight.config import Config, Configured
from allsight.data.world.language.split import PAIRS

_LEAST = len(PAIRS["train"])


class Language(Configured):
    """Pictures with captions, questions and masked sentences; `generate_language` writes them."""

    class Config(Config):
        """Options of the language world.

        Args:
            seed: Everything follows from it.
            size_px: Side of the square pictures.
            train: Training pictures; at least as many as there are pairs of name and colour (224), so that
                each occurs.
            val: Pictures of combinations of name, colour and place that training has not.
            pairs: Pictures of pairs of name and colour that training has not.
            objects: Fewest and most objects of a picture.
            noise: 0 to 1: noise of the camera; 1 is plus or minus 40 grey levels.
            per_shard: Pictures of one tar.
            jpeg_quality: 1 to 100.
        """

        seed: int = Field(default=0, ge=0, lt=2**63)
        size_px: int = Field(default=64, ge=48, le=256)
        train: int = Field(default=20_000, ge=_LEAST, le=1_000_000)
        val: int = Field(default=1000, ge=1, le=100_000)
        pairs: int = Field(default=500, ge=1, le=100_000)
        objects: tuple[int, int] = (1, 3)
        noise: float = Field(default=0.1, ge=0.0, le=1.0)
        per_shard: int = Field(default=5000, ge=1)
        jpeg_quality: int = Field(default=95, ge=1, le=100)

        @field_validator("objects")
        @classmethod
        def _objects_in_order(cls, objects: tuple[int, int]) -> tuple[int, int]:
            if not 1 <= objects[0] <= objects[1] <= 3:
                raise ValueError("expected fewest <= most, both from 1 to 3")
            return objects
