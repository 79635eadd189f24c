"""Pure drawing on uint8 RGB arrays [h, w, 3]: boxes, masks, label maps, text, bars, sheets of pictures.

Every function returns a new picture and leaves its inputs alone. Line widths and letters follow the size
of the picture, from 32 px to 4K; enlarge small pictures first (`enlarge`) if labels should be read.
"""

from allsight.draw.bars import Bar, draw_bars
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
from allsight.draw.text import draw_text, text_height_px

__all__ = [
    "Bar",
    "captioned",
    "color_bar",
    "contact_sheet",
    "draw_bars",
    "draw_boxes",
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
    "text_height_px",
]
