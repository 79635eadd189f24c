"""Pure drawing on uint8 RGB arrays [h, w, 3]: boxes, masks, label maps, text, bars, sheets of pictures.

Every function returns a new picture and leaves its inputs alone. Line widths and letters follow the size
of the picture, from 32 px to 4K; enlarge small pictures first (`enlarge`) if labels should be read.
"""

from allsight.draw.bars import Bar, draw_bars
from allsight.draw.bev import BEVView, bev_ground, draw_bev
from allsight.draw.boxes3d import draw_boxes3d
from allsight.draw.encode import encode_jpeg, encode_png
from allsight.draw.heat import color_bar, draw_cross, draw_dots, draw_heat, heat_colors
from allsight.draw.overlay import (
    draw_boxes,
    draw_label_map,
    draw_masks,
    draw_points,
    line_width_px,
)
from allsight.draw.palette import palette, readable_on
from allsight.draw.sheet import captioned, contact_sheet, enlarge, legend
from allsight.draw.surround import surround
from allsight.draw.text import draw_text, text_height_px

__all__ = [
    "BEVView",
    "Bar",
    "bev_ground",
    "captioned",
    "color_bar",
    "contact_sheet",
    "draw_bars",
    "draw_bev",
    "draw_boxes",
    "draw_boxes3d",
    "draw_cross",
    "draw_dots",
    "draw_heat",
    "draw_label_map",
    "draw_masks",
    "draw_points",
    "draw_text",
    "encode_jpeg",
    "encode_png",
    "enlarge",
    "heat_colors",
    "legend",
    "line_width_px",
    "palette",
    "readable_on",
    "surround",
    "text_height_px",
]
