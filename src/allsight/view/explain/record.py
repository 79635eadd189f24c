"""An explanation as files: pictures and one JSON, which the report reads again without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allsight.view.explain.roofline import PartTime, Peak
from allsight.view.explain.sampling import LayerStatistics

FOLDER = "explained"
FILE = "explain.json"


@dataclass(frozen=True)
class Explanation:
    """What was found about a backbone.

    Args:
        weights: Which, in words.
        task: Whose pictures it saw.
        hw_px: Height and width at which parts were timed.
        pictures: Name of each picture -> kind (`sampling`, `displacement`) -> file.
        field: File of the effective receptive field; empty if there is none.
        sides_px: For each map, share of the field -> side of the square that holds it.
        layers: Statistics of the deformable layers over all pictures.
        peak: What the machine reaches; None where nothing was timed.
        parts: Times of parts.
    """

    weights: str
    task: str
    hw_px: tuple[int, int]
    pictures: Mapping[str, Mapping[str, str]]
    field: str
    sides_px: Sequence[Mapping[str, int]]
    layers: Sequence[LayerStatistics]
    peak: Peak | None
    parts: Sequence[PartTime]

    def save(self, folder: Path) -> None:
        """Write `explain.json`."""
        (folder / FILE).write_text(json.dumps({"format": 1, **asdict(self)}, indent=1), encoding="utf-8")


def read_explanation(folder: Path) -> Explanation | None:
    """The explanation in a folder; None where there is none.

    Raises:
        ValueError: What is there is damaged; says why.
    """
    try:
        tree: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Explanation(
            weights=tree["weights"],
            task=tree["task"],
            hw_px=tuple(tree["hw_px"]),
            pictures=tree["pictures"],
            field=tree["field"],
            sides_px=tree["sides_px"],
            layers=[
                LayerStatistics(**{**each, "displacement_px": tuple(each["displacement_px"])})
                for each in tree["layers"]
            ],
            peak=None if tree["peak"] is None else Peak(**tree["peak"]),
            parts=[PartTime(**each) for each in tree["parts"]],
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FILE}: cannot be read: {error}") from error
