"""The words of the embedded world: what can be in a picture and how it is named.

Everything derived from a scene (class folders, categories, label maps, later captions and questions) takes
its names from here, so that the same thing has the same name in every format.
"""

from __future__ import annotations

from typing import Final

Rgb = tuple[int, int, int]

SHAPES: Final = (
    "ball",
    "car",
    "cone",
    "cube",
    "cylinder",
    "house",
    "mushroom",
    "pyramid",
    "ring",
    "robot",
    "star",
    "tree",
)
"""Names of the objects, sorted, so that their order is the same in folders, categories and label maps."""

CAPTION_SHAPES: Final = (
    "arch",
    "arrow",
    "boat",
    "bolt",
    "bottle",
    "cactus",
    "chair",
    "cross",
    "cup",
    "diamond",
    "fish",
    "flag",
    "hammer",
    "heart",
    "hourglass",
    "ladder",
    "rocket",
    "snowman",
    "stairs",
    "table",
)
"""Names that occur only in captions: of no class, in no question or answer, and never alone."""

COLOURS: Final[dict[str, Rgb]] = {
    "red": (208, 38, 40),
    "orange": (246, 134, 18),
    "yellow": (244, 212, 34),
    "green": (44, 150, 58),
    "turquoise": (38, 186, 184),
    "blue": (38, 84, 206),
    "purple": (126, 52, 168),
    "pink": (240, 122, 172),
    "brown": (124, 76, 40),
    "white": (240, 240, 238),
    "grey": (136, 138, 142),
    "black": (48, 48, 54),
}

PATTERN_COLOURS: Final[dict[str, Rgb]] = {
    "red": (250, 190, 180),
    "orange": (255, 232, 196),
    "yellow": (176, 126, 10),
    "green": (190, 232, 160),
    "turquoise": (206, 246, 240),
    "blue": (178, 204, 252),
    "purple": (222, 190, 244),
    "pink": (255, 226, 238),
    "brown": (222, 186, 142),
    "white": (150, 154, 166),
    "grey": (222, 224, 228),
    "black": (168, 168, 178),
}
"""The second colour of stripes, dots and checks for each named colour."""

SIZES: Final[dict[str, float]] = {"small": 0.62, "medium": 1.0, "large": 1.5}
"""Heights in metres of the toys of each size."""

TEXTURES: Final = ("plain", "stripes", "dots", "checks")

SETTINGS: Final = ("meadow", "desert", "snow", "square", "room")
"""Kinds of place: all are outdoors but the room."""

STUFF: Final = ("sky", "hill", "wall", "ground")
"""Classes of a label map that are not objects; they come first."""

LABEL_CLASSES: Final = STUFF + SHAPES
"""Classes of a label map in order of their values 0, 1, 2, ..."""

IGNORE_LABEL: Final = 255
"""Value of label map pixels that belong to no class: stones that lie about."""

RELATIONS: Final[dict[str, str]] = {"left_of": "right_of", "in_front_of": "behind", "hides": "hidden_by"}
"""Relations a scene records, each with the name of its inverse, which follows and is not recorded."""
