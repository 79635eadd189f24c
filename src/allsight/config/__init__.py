"""Configuration: typed frozen Python to write, YAML to store, one validator for both.

Only the mechanism lives here. The room that owns a contract owns its table of names (`tasks.base.TASKS`,
`models.base.MODELS`, `backbones.BACKBONES`).
"""

from allsight.config.base import Config, Configured, Family, Variants
from allsight.config.errors import ConfigError, did_you_mean
from allsight.config.mixture import Mixture
from allsight.config.overrides import apply_overrides, replace
from allsight.config.text import changed_lines, dump_yaml, parse_value, parse_yaml
from allsight.config.tree import build, dump

__all__ = [
    "Config",
    "ConfigError",
    "Configured",
    "Family",
    "Mixture",
    "Variants",
    "apply_overrides",
    "build",
    "changed_lines",
    "did_you_mean",
    "dump",
    "dump_yaml",
    "parse_value",
    "parse_yaml",
    "replace",
]
