"""Looking at a data set before training on it: what it holds, what is wrong with it, how it looks."""

from allsight.data.inspection.driving import draw_rig, drive_sheet, ego_path
from allsight.data.inspection.looks import Look, look_at, look_at_all
from allsight.data.inspection.mosaic import draw_sample, mosaic
from allsight.data.inspection.survey import SplitSurvey, Survey, survey

__all__ = [
    "Look",
    "SplitSurvey",
    "Survey",
    "draw_rig",
    "draw_sample",
    "drive_sheet",
    "ego_path",
    "look_at",
    "look_at_all",
    "mosaic",
    "survey",
]
