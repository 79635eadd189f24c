"""Between configurations and plain trees (dicts, lists, scalars), with messages that say where and what."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

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
        if not isinstance(name, str):
            faults.append(f"{path}.{name}: no such field; names are words, YAML reads this as {name!r}")
            continue
        field = cls.model_fields.get(name)
        try:
            values[name] = (
                value if field is None else _build(field.annotation, value, f"{path}.{name}", trust)
            )
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        # Faults of siblings are reported together; the nested ones already carry their full path.
        raise ConfigError(
            "\n".join([*faults, *(_unknown(cls, name, path) for name in _strangers(cls, tree))])
        )
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
    """Pydantic's errors as our one-liners; what fits no member of a union is one fault."""
    lines: dict[object, str] = {}
    for number, detail in enumerate(error.errors(include_url=False)):
        name = str(detail["loc"][0]) if detail["loc"] else ""
        field = cls.model_fields.get(name)
        is_union = field is not None and len(_members(field.annotation)) > 1
        if (
            field is not None
            and is_union
            and len(detail["loc"]) > 1
            and config_class(field.annotation) is None
        ):
            text = f"{path}.{name}: expected {_type_name(field.annotation)}, got {detail.get('input')!r}"
            lines.setdefault(name, text)
        else:
            lines[number] = _explain(cls, detail, path)
    return list(lines.values())


def _members(annotation: Any) -> list[Any]:
    """The types a field may have, None left out."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [] if annotation is type(None) else [annotation]


def _explain(cls: type[BaseModel], detail: ErrorDetails, path: str) -> str:
    loc = [
        str(part)
        for part in detail["loc"]
        if not str(part).startswith(("function-", "lax-or-strict", "nullable"))
    ]
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
    if kind.endswith(("_parsing", "_type")) or kind in (
        "int_from_float",
        "model_attributes_type",
        "is_instance_of",
    ):
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
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(
            "None" if part is type(None) else _type_name(part) for part in get_args(annotation)
        )
    if get_origin(annotation) is Mixture:
        return "a mapping of named items"
    if get_origin(annotation) is Literal:
        return " | ".join(repr(option) for option in get_args(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        # `Config` alone would say nothing: all settings are nested classes of that name.
        return annotation.__qualname__ if issubclass(annotation, Config) else annotation.__name__
    return str(annotation)


def refuses_truth(annotation: Any) -> str:
    """What a field of numbers expects, empty for fields that may hold true and false."""
    members = _members(annotation)
    if any(member is bool or member is Any or get_origin(member) is Literal for member in members):
        return ""
    return _type_name(annotation) if {int, float} & set(members) else ""


def text_is_meant(annotation: Any, text: str) -> bool:
    """Whether a field takes `text` as it stands: one of texts, where `on`, `2024` and `1:30` are words."""
    members = _members(annotation)
    optional = annotation is not None and len(get_args(annotation)) > len(members)
    if optional and text in ("", "null", "None", "~"):
        return False
    return bool(members) and all(
        member in (str, Path)
        or (get_origin(member) is Literal and all(isinstance(option, str) for option in get_args(member)))
        for member in members
    )


def _strangers(cls: type[Config], tree: Mapping[str, Any]) -> list[str]:
    has_kind = cls.of is not None and cls.of.family is not None
    strangers = [name for name in tree if name not in cls.model_fields and not (name == "kind" and has_kind)]
    return [name for name in strangers if isinstance(name, str)]


def _unknown(cls: type[BaseModel], name: str, path: str) -> str:
    return f"{path}.{name}: no such field{did_you_mean(name, cls.model_fields)}"


def _reroot(message: str, cls: type[Config], path: str) -> str:
    """Constructor errors start with the class's name; errors of a tree start with the path in the tree."""
    name = cls.__qualname__.removesuffix(".Config")
    return "\n".join(
        path + line.removeprefix(name) if line.startswith((name + ".", name + ":")) else line
        for line in message.split("\n")
    )
