"""Between configurations and plain trees (dicts, lists, scalars), with messages that say where and what."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from allsight.config.base import Config
from allsight.config.errors import ConfigError, did_you_mean
from allsight.config.mixture import Mixture

C = TypeVar("C", bound=Config)
Tree = dict[str, Any]


def dump(config: Config) -> Tree:
    """The plain tree of a configuration; `build` of it gives an equal configuration."""
    return _dump(config)


def _dump(value: Any) -> Any:
    if isinstance(value, Config):
        owner = type(value).of
        family = getattr(owner, "family", None)
        kind = {"kind": family.kind_of(owner)} if family is not None else {}
        return {**kind, **{name: _dump(getattr(value, name)) for name in type(value).model_fields}}
    if isinstance(value, Mapping):
        return {str(key): _dump(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_dump(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def build(cls: type[C], tree: Any, *, path: str = "config", trust: bool = False) -> C:
    """A validated configuration from a plain tree.

    Args:
        cls: The class expected; where it belongs to a family, `kind` in the tree chooses the member.
        path: Prefix of the paths in messages.
        trust: Allow `kind`s that import code from outside allsight.
    Raises:
        ConfigError: One line per fault.
    """
    if isinstance(tree, cls):
        return tree
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, got {tree!r}")
    cls = choose(cls, tree, path=path, trust=trust)
    values, faults = {}, []
    for name, value in tree.items():
        if name == "kind" and cls.of is not None and cls.of.family is not None:
            continue
        field = cls.model_fields.get(name)
        try:
            values[name] = value if field is None else _build(field.annotation, value, f"{path}.{name}", trust)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        # Faults of siblings are reported together; the nested ones already carry their full path.
        raise ConfigError("\n".join([*faults, *(_unknown(cls, name, path) for name in _strangers(cls, tree))]))
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(_reroot(str(error), cls, path)) from None


def choose(cls: type[C], tree: Mapping[str, Any], *, path: str, trust: bool) -> type[C]:
    """The class that `kind` in a tree stands for; `cls` itself where it has no family."""
    family = getattr(cls.of, "family", None)
    if family is None:
        return cls
    kind = tree.get("kind")
    if kind is None:
        if "family" in cls.of.__dict__:
            raise ConfigError(f"{path}.kind: required; one of {', '.join(sorted(family.table))}")
        return cls
    owner = family.find(str(kind), path=f"{path}.kind", trust=trust)
    if not issubclass(owner.Config, cls):
        raise ConfigError(f"{path}.kind: '{kind}' cannot stand here; expected a {cls.__qualname__}")
    return owner.Config


def _build(annotation: Any, value: Any, path: str, trust: bool) -> Any:
    """Build the configurations inside a field's value; everything else is left to the validator."""
    item = config_class(annotation)
    if item is None or value is None:
        return value
    kind, cls = item
    if kind is Mixture:
        if isinstance(value, Mixture) or not isinstance(value, Mapping):
            return value
        return Mixture({str(k): build(cls, v, path=f"{path}.{k}", trust=trust) for k, v in value.items()})
    if kind is tuple:
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(build(cls, v, path=f"{path}.{i}", trust=trust) for i, v in enumerate(value))
    return build(cls, value, path=path, trust=trust)


def config_class(annotation: Any) -> tuple[type, type[Config]] | None:
    """(container, item class) if a field holds configurations: (Config, X), (tuple, X) or (Mixture, X)."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return config_class(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        found = [config_class(part) for part in get_args(annotation) if part is not type(None)]
        return next((item for item in found if item is not None), None)
    if origin in (tuple, Mixture):
        inner = config_class(get_args(annotation)[0])
        return (origin, inner[1]) if inner else None
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return Config, annotation
    return None


def explain(cls: type[BaseModel], error: ValidationError, *, path: str) -> list[str]:
    """Pydantic's errors as our one-liners."""
    return [_explain(cls, detail, path) for detail in error.errors(include_url=False)]


def _explain(cls: type[BaseModel], detail: ErrorDetails, path: str) -> str:
    loc = [str(part) for part in detail["loc"] if not str(part).startswith(("function-", "lax-or-strict", "nullable"))]
    where = ".".join([path, *_field_path(cls, loc)])
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return _unknown(cls, loc[-1], ".".join([path, *loc[:-1]]))
    if kind == "missing":
        return f"{where}: required, but not given"
    if kind in ("value_error", "assertion_error"):
        message = str(detail.get("ctx", {}).get("error", detail["msg"]))
        return f"{where}: {message}"
    if kind == "literal_error":
        expected = str(detail.get("ctx", {}).get("expected", ""))
        options = [option.strip(" '") for option in expected.replace(" or ", ", ").split(",")]
        hint = did_you_mean(given, options) if isinstance(given, str) else ""
        return f"{where}: expected {expected}, got {given!r}{hint if 'did you mean' in hint else ''}"
    if kind.endswith(("_parsing", "_type")) or kind in ("int_from_float", "model_attributes_type", "is_instance_of"):
        field = cls.model_fields.get(loc[0]) if loc else None
        expected = kind.removesuffix("_parsing").removesuffix("_type").removesuffix("_from_float")
        if field is not None and len(loc) == 1:
            expected = _type_name(field.annotation)
        return f"{where}: expected {expected}, got {given!r}"
    message = detail["msg"]
    return f"{where}: {message[0].lower()}{message[1:]}, got {given!r}"


def _field_path(cls: type[BaseModel], loc: list[str]) -> list[str]:
    """Pydantic adds the tried union member to the path; people do not want to see `lr.float`."""
    if loc and loc[0] in cls.model_fields and config_class(cls.model_fields[loc[0]].annotation) is None:
        return [loc[0], *(part for part in loc[1:] if part.isdigit())]
    return loc


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    return annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)


def _strangers(cls: type[Config], tree: Mapping[str, Any]) -> list[str]:
    has_kind = cls.of is not None and cls.of.family is not None
    return [name for name in tree if name not in cls.model_fields and not (name == "kind" and has_kind)]


def _unknown(cls: type[BaseModel], name: str, path: str) -> str:
    return f"{path}.{name}: no such field{did_you_mean(name, cls.model_fields)}"


def _reroot(message: str, cls: type[Config], path: str) -> str:
    """Constructor errors start with the class's name; errors of a tree start with the path in the tree."""
    name = cls.__qualname__.removesuffix(".Config")
    return "\n".join(
        path + line.removeprefix(name) if line.startswith((name + ".", name + ":")) else line
        for line in message.split("\n")
    )


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, as people write them."""


def _represent_list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    flat = all(not isinstance(item, dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flat)


_Dumper.add_representer(list, _represent_list)


def dump_yaml(tree: Tree) -> str:
    """A tree as YAML, in the order of the fields."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def parse_yaml(text: str, *, where: str) -> Tree:
    """YAML text as a tree.

    Raises:
        ConfigError: Not YAML, or not a mapping; `where` names the file.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{where}: not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of settings, got {type(tree).__name__}")
    return tree


def parse_value(text: str) -> Any:
    """The value of `key=value` as YAML reads it; `1e-3`, which YAML calls text, becomes a number."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


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
            lines.append(f"{indent}{key}:")
            _mark(value, before, depth + 1, lines)
            continue
        text = dump_yaml({key: value}).rstrip("\n").split("\n")
        if before is _ABSENT:
            text[0] += "  # new"
        elif before != value:
            was = yaml.dump(before, Dumper=_Dumper, default_flow_style=True, width=10_000).split("\n")[0]
            text[0] += f"  # changed, was {was}"
        lines.extend(indent + line for line in text)
    lines.extend(f"{indent}# {key}: removed" for key in known if key not in tree)
