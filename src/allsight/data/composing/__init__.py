"""Pictures composed from cut-outs on other pictures, with captions and questions that follow from them."""

from allsight.data.composing.cutouts import Cutout, read_cutouts
from allsight.data.composing.generate import Composing, compose

__all__ = ["Composing", "Cutout", "compose", "read_cutouts"]
