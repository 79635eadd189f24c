"""How good are features that are not trained any more? By neighbours, by a linear layer, by names."""

from allsight.tasks.probes.features import Features
from allsight.tasks.probes.linear import LinearProbe, fit_linear
from allsight.tasks.probes.neighbours import vote
from allsight.tasks.probes.zero_shot import TEMPLATES, class_captions, nearest_captions

__all__ = ["TEMPLATES", "Features", "LinearProbe", "class_captions", "fit_linear", "nearest_captions", "vote"]
