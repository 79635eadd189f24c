"""Generated drives: a ring of six cameras on a car in a street, with boxes of ten classes, maps and poses.

options      Drives.Config: counts, sizes, difficulty
sampling     (seed, split, index) -> drive
drive        the drive: roads, the car's path, things and their tracks, cameras, light, as plain data
road         places on roads; models: what the ten classes look like
painting     drive -> pictures, and how much of each thing is seen (ground, shells)
mapping      drive -> vector map
generate     all of it into a folder, as nuScenes tables
"""

from allsight.data.world.drives.drive import Drive
from allsight.data.world.drives.generate import generate_drives
from allsight.data.world.drives.options import Drives
from allsight.data.world.drives.painting import Painter, Shot
from allsight.data.world.drives.sampling import sample_drive

__all__ = ["Drive", "Drives", "Painter", "Shot", "generate_drives", "sample_drive"]
