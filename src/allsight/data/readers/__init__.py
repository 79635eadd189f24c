"""Random access to the samples of data sets as people have them. `open_reader("imagefolder:pets", root)`."""

from allsight.data.readers.detection import Candidate, detect_format
from allsight.data.readers.formats import FORMATS
from allsight.data.readers.opening import (
    NamedReader,
    candidates_of,
    format_and_place,
    open_reader,
    typed_options,
)

__all__ = [
    "FORMATS",
    "Candidate",
    "NamedReader",
    "candidates_of",
    "detect_format",
    "format_and_place",
    "open_reader",
    "typed_options",
]
