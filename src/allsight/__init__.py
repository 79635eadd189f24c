"""Train and run vision generalists: InternImage, M3I, Uni-Perceiver and BEVFormer in one package.

Importing this loads nothing heavy; rooms and public names are fetched when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from allsight.engine.config import RunConfig
    from allsight.engine.predictor import Predictor
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
_HOME = {"Predictor": "engine.predictor", "Trainer": "engine.trainer"}

__all__ = ["Predictor", "Trainer", "__version__", "load"]


def load(
    run: RunConfig | Path | str,
    weights: str | Path | None = None,
    classes: str | Path | Mapping[str, tuple[str, ...]] | None = None,
    *,
    device: str | None = None,
    trust: bool = False,
) -> Predictor:
    """A predictor from a run folder, or from a recipe and weights.

    Args:
        run: Run folder, recipe (its name, `file.py:function` or a YAML file), or configuration.
        weights: `best` (default for a run folder: the best evaluated ones, averaged if the run kept an
            average), `last`, `raw` (newest, not averaged), `random`, or a file of weights.
        classes: File with one class name a line (or a JSON list), or names per task; default the run's.
        device: `cpu`, `cuda`, ...; default the fastest there is.
        trust: Allow the run folder to name code outside allsight.
    Returns:
        A `Predictor`: `predict(picture)`, `predict_many(pictures)`.
    Raises:
        ConfigError: No such run or recipe, a recipe without weights, class names that do not fit, or a device
            that is not there.
        CheckpointError: The weights cannot be read or do not fit.
    """
    from pathlib import Path

    if isinstance(run, str | Path) and not Path(run).is_dir():
        from allsight.recipes import find_config

        run, _ = find_config(str(run), trust=trust)
    from allsight.engine import predictor

    return predictor.load(run, weights, classes, device=device, trust=trust)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"allsight.{_HOME[name]}"), name)
    if name in _ROOMS:
        return import_module(f"allsight.{name}")
    raise AttributeError(f"module 'allsight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
