"""Why weights do not fit a model, said before hundreds of names that do not."""

from __future__ import annotations

from torch import nn

from allsight.backbones import InternImage
from allsight.backbones import internimage_fitting as fitting
from allsight.backbones import internimage_layouts as layouts
from allsight.backbones.internimage_recognition import head_of
from allsight.models.classifier import Classifier
from allsight.types import CheckpointError
from allsight.weights import Opened, Weights


def cause_of_misfit(model: nn.Module, weights: Weights) -> str:
    """What most likely sets weights apart from a model, in words; "" where that is not known.

    Args:
        model: Where it has an InternImage, the weights are searched for one, and for a classifier's head.
        weights: As they lie in their file.
    """
    net = next((part for part in model.modules() if isinstance(part, InternImage)), None)
    if net is None:
        return ""
    try:
        found = layouts.find(Opened(dict(weights), "the weights", "weights"))
    except CheckpointError:
        return ""
    causes = [fitting.misfit(found, net.config.model_dump(), InternImage.variants)]
    classifier = next((part for part in model.modules() if isinstance(part, Classifier)), None)
    if classifier is not None:
        causes.append(_of_head(found, classifier.config))
    return "; ".join(cause for cause in causes if cause)


def _of_head(found: layouts.Published, config: Classifier.Config) -> str:
    head = head_of(found.tensors)
    if head is None:
        around = next(
            (note for note in found.notes if note.startswith("the backbone of")), "a backbone alone"
        )
        return f"the weights are {around.partition(';')[0]}, without a classification head"
    if head["head"] != config.head:
        return f"the weights have the head '{head['head']}', the model '{config.head}'"
    if head["num_classes"] != config.num_classes:
        return f"the weights have {head['num_classes']} classes, the model {config.num_classes}"
    return ""
