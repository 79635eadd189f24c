"""Getting samples in: readers, transforms, and the Meta Sampler and Dataloader that feed a run from them.

Importing this loads nothing; public names are fetched when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight.data.corrupt import Ledger
    from allsight.data.loader import EvaluationLoader, MetaDataloader
    from allsight.data.sampler import Plan, Sampler, TaskPlan

_HOME = {
    "EvaluationLoader": "loader",
    "Ledger": "corrupt",
    "MetaDataloader": "loader",
    "Plan": "sampler",
    "Sampler": "sampler",
    "TaskPlan": "sampler",
}

__all__ = ["EvaluationLoader", "Ledger", "MetaDataloader", "Plan", "Sampler", "TaskPlan"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"allsight.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'allsight.data' has no attribute {name!r}")
