"""Trees as YAML text and back, and the values that people type."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from allsight.config.errors import ConfigError

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, and a key given twice is an error in place of a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, as people write them."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Quoted with escapes where it has line breaks, so that each value stays on its line.
    style = '"' if text.splitlines() not in ([], [text]) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")

_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def dump_yaml(tree: Tree) -> str:
    """A tree as YAML, in the order of the fields."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))


def parse_yaml(text: str, *, where: str) -> Tree:
    """YAML text as a tree.

    Raises:
        ConfigError: Not YAML, or not a mapping; `where` names the file.
    """
    try:
        tree = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, got {type(tree).__name__}")
    return tree


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def parse_value(text: str) -> Any:
    """The value of `key=value` as YAML reads it; what is no YAML is text, and `None` means null."""
    try:
        value = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    return None if value == "None" else value


def changed_lines(tree: Tree, base: Tree) -> str:
    """YAML of `tree` in which each line that differs from `base` says what it was before."""
    lines: list[str] = []
    _mark(tree, base, 0, lines)
    return "\n".join(lines) + "\n"


_ABSENT = object()


def _mark(tree: Any, base: Any, depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    known = base if isinstance(base, dict) else {}
    for key, value in tree.items():
        before = known.get(key, _ABSENT)
        if isinstance(value, dict) and value:
            # The order of a mixture decides how steps are drawn, so it is a setting like any other.
            moved = isinstance(before, dict) and before.keys() == value.keys() and list(before) != list(value)
            name = dump_yaml({key: None}).partition(": null")[0]
            lines.append(f"{indent}{name}:{'  # order changed' if moved else ''}")
            _mark(value, before, depth + 1, lines)
            continue
        text = dump_yaml({key: value}).rstrip("\n").split("\n")
        if before is _ABSENT:
            text[0] += "  # new"
        elif before != value:
            text[0] += f"  # changed, was {_on_one_line(before)}"
        lines.extend(indent + line for line in text)
    lines.extend(f"{indent}# {key}: removed" for key in known if key not in tree)


def _on_one_line(value: Any) -> str:
    text = yaml.dump([value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.rstrip("\n").removeprefix("[").removesuffix("]")
