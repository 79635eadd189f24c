"""How good are features that are not trained any more? By the vote of neighbours, and by a linear layer."""

from allsight.tasks.probes.features import Features
from allsight.tasks.probes.linear import LinearProbe, fit_linear
from allsight.tasks.probes.neighbours import vote

__all__ = ["Features", "LinearProbe", "fit_linear", "vote"]
