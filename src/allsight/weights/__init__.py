"""Files of weights: open them safely, take the part that is meant, say what fitted and what did not.

A family brings a two-way map between its own names and the published ones; everything else is here.
"""

from allsight.weights.loading import Mismatch, Weights, check_finite, check_fit, load_mapped
from allsight.weights.names import in_words, places_of, select_part
from allsight.weights.opening import Opened, Source, open_weights, read_weights
from allsight.weights.report import LoadReport
from allsight.weights.survey import Survey, damaged_record, difference, sha256, survey
from allsight.weights.writing import write_weights

__all__ = [
    "LoadReport",
    "Mismatch",
    "Opened",
    "Source",
    "Survey",
    "Weights",
    "check_finite",
    "check_fit",
    "damaged_record",
    "difference",
    "in_words",
    "load_mapped",
    "open_weights",
    "places_of",
    "read_weights",
    "select_part",
    "sha256",
    "survey",
    "write_weights",
]
