"""Scenes: what stands where in a picture, drawn from a seed; everything else is derived from them.

A `Scene` is plain data. Its numbers are rounded when they are drawn, so that a scene read back from its
JSON line is equal to the one that was written and renders to the same picture. How scenes are drawn is in
`sampling.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from allsight.data.world.camera import Camera
from allsight.data.world.vocabulary import Rgb

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Toy:
    """One object on the ground.

    Args:
        shape, colour, size, texture: Words of the vocabulary.
        x_m, y_m: Place of its middle on the ground.
        turn_rad: Turn about the upright axis.
        scale_m: Factor from the shape's own units to metres.
        rgb, pattern_rgb: The colours as painted: those of the vocabulary, varied and drawn to the ground's.
        box_xyxy_px: Tight box around the visible pixels, right and bottom exclusive; None before rendering.
        pixels: Number of visible pixels.
        visible: Visible pixels as a part of those it would show if it stood alone.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x_m: float
    y_m: float
    turn_rad: float
    scale_m: float
    rgb: Rgb
    pattern_rgb: Rgb
    box_xyxy_px: Box | None = None
    pixels: int = 0
    visible: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where a scene is.

    Args:
        kind: One of `vocabulary.SETTINGS`.
        ground_rgb, ground_second_rgb: Main colour of the ground and that of its patches, joints or boards.
        sky_rgb: Colour of the sky overhead (indoors: of the wall).
        haze_rgb: Colour of the sky at the horizon (indoors: of the wall's second colour).
        hills: Height of hills at the horizon as a part of the picture's side, 0 for none.
        clouds: 0 to 1.
        wall_m: Distance of the wall, 0 outdoors.
        ornaments: Pictures on the wall: (middle x, middle above the eye, half width, half height, colour),
            lengths as parts of the wall's distance.
        offset: Where in the tables of smooth noise this scene looks.
    """

    kind: str
    ground_rgb: Rgb
    ground_second_rgb: Rgb
    sky_rgb: Rgb
    haze_rgb: Rgb
    hills: float
    clouds: float
    wall_m: float
    ornaments: tuple[tuple[float, float, float, float, Rgb], ...]
    offset: tuple[int, int]


@dataclass(frozen=True)
class Sun:
    """Direction to the light (unit vector, world frame) and its strengths."""

    direction: tuple[float, float, float]
    direct: float
    ambient: float


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn.

    Args:
        split: "train" or "val".
        stream: "portraits" (one main object) or "scenes".
        index: Number within split and stream; (seed, split, stream, index) is all a scene depends on.
        toys: Objects with a name; every one is visible.
        stones: Clutter on the ground, in no class.
        main: Position in `toys` of the object a portrait shows.
        relations: (subject, relation, object) with positions in `toys` and relations of
            `vocabulary.RELATIONS`.
        noise: Largest deviation of the camera noise in grey levels.
        noise_key: Key of that noise.
    """

    split: str
    stream: str
    index: int
    place: Place
    camera: Camera
    sun: Sun
    toys: tuple[Toy, ...]
    stones: tuple[Toy, ...]
    main: int | None
    relations: tuple[tuple[int, str, int], ...]
    noise: int
    noise_key: int

    @property
    def name(self) -> str:
        """Stem of the names of its files."""
        return f"{self.stream[:-1]}_{self.index:06d}"

    def to_json(self) -> dict[str, Any]:
        """As plain data for one JSON line."""
        return {
            **vars(self),
            "place": vars(self.place),
            "camera": vars(self.camera),
            "sun": vars(self.sun),
            "toys": [vars(toy) for toy in self.toys],
            "stones": [vars(stone) for stone in self.stones],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        """The scene that `to_json` wrote, before or after a trip through JSON."""
        place, sun = dict(data["place"]), dict(data["sun"])
        place["ornaments"] = tuple((*shape[:4], tuple(shape[4])) for shape in place["ornaments"])
        return cls(
            **{
                **data,
                "place": Place(**{name: _tuples(value) for name, value in place.items()}),
                "camera": Camera(**data["camera"]),
                "sun": Sun(**{name: _tuples(value) for name, value in sun.items()}),
                "toys": tuple(_toy(toy) for toy in data["toys"]),
                "stones": tuple(_toy(stone) for stone in data["stones"]),
                "relations": tuple(tuple(relation) for relation in data["relations"]),
            }
        )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _toy(data: dict[str, Any]) -> Toy:
    return Toy(**{name: _tuples(value) for name, value in data.items()})


def with_relations(scene: Scene, hiding: list[tuple[int, int]]) -> Scene:
    """The scene with the relations of its objects that no person would doubt.

    Args:
        scene: Rendered, so that boxes are known.
        hiding: Pairs (front, back) of which the first covers part of the second.
    """
    relations: list[tuple[int, str, int]] = []
    gap_px = 0.08 * scene.camera.size_px
    for i, first in enumerate(scene.toys):
        for j, second in enumerate(scene.toys):
            if i == j or first.box_xyxy_px is None or second.box_xyxy_px is None:
                continue
            middles = [(toy[0] + toy[2]) / 2 for toy in (first.box_xyxy_px, second.box_xyxy_px)]
            if middles[1] - middles[0] >= gap_px:
                relations.append((i, "left_of", j))
            if second.y_m - first.y_m >= 0.5 * (first.scale_m + second.scale_m):
                relations.append((i, "in_front_of", j))
            if (i, j) in hiding:
                relations.append((i, "hides", j))
    return replace(scene, relations=tuple(relations))
