"""Classes by their names: a picture belongs to the class whose captions lie nearest, without any training.

Letters: n pictures, k classes, m captions of each, d channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allsight.data.text import Tokenizer
from allsight.tasks.names import names_as_texts
from allsight.types import Segment

TEMPLATES = ("a photo of a {}",)
"""What is said of a class, with its name in the braces."""


def class_captions(
    classes: Sequence[str], tokenizer: Tokenizer, templates: Sequence[str] = TEMPLATES
) -> Segment:
    """Captions of each class, one after the other, class by class; underscores in names become spaces."""
    names = [name.replace("_", " ") for name in classes]
    return names_as_texts([template.format(name) for name in names for template in templates], tokenizer)


def nearest_captions(
    pictures: Float[Tensor, "n d"], captions: Float[Tensor, "km d"], num_classes: int
) -> Float[Tensor, "n k"]:
    """Cosine of each picture and the mean direction of each class's captions.

    Source: CLIP, arXiv:2103.00020, section 3.1.4 (means over prompts, in the space of embeddings).
    """
    each = F.normalize(captions, dim=-1).unflatten(0, (num_classes, -1))
    return F.normalize(pictures, dim=-1) @ F.normalize(each.mean(1), dim=-1).T
