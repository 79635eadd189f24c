"""Train and run vision generalists: InternImage, M3I pre-training, Uni-Perceiver and BEVFormer in one package.

Importing this loads nothing heavy; every public name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allsight import backbones, config, data, draw, engine, layers, models, ops, recipes, tasks, types, view, weights
    from allsight.engine.predictor import Predictor, load
    from allsight.engine.trainer import Trainer

__version__ = "0.1.0"

_ROOMS = (
    "backbones",
    "config",
    "data",
    "draw",
    "engine",
    "layers",
    "models",
    "ops",
    "recipes",
    "tasks",
    "types",
    "view",
    "weights",
)
_HOME = {"Predictor": "engine.predictor", "load": "engine.predictor", "Trainer": "engine.trainer"}

__all__ = ["Predictor", "Trainer", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"allsight.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"allsight.{name}")
    raise AttributeError(f"module 'allsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
