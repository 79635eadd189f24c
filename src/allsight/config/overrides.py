"""`key.path=value` overrides: kinds first, then variants, then the rest; validated once at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from allsight.config.base import Config
from allsight.config.errors import ConfigError, did_you_mean
from allsight.config.mixture import Mixture
from allsight.config.text import Tree, parse_value
from allsight.config.tree import _dump, build, choose, config_class, dump, text_is_meant

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class _Typed:
    """A value as somebody typed it: what it means depends on the field it is for."""

    text: str

    def value(self, annotation: Any = None) -> Any:
        return self.text if text_is_meant(annotation, self.text) else parse_value(self.text)


def replace(config: C, changes: Mapping[str, Any]) -> C:
    """A copy of `config` with dotted paths changed: `replace(cfg, {"optim.lr": 2e-4})`.

    Values may be configurations. Setting a mixture's item to None removes it.

    Raises:
        ConfigError: Unknown path, or the result is not valid.
    """
    return _override(config, [(path, value) for path, value in changes.items()], trust=True)


def apply_overrides(config: C, texts: Iterable[str], *, trust: bool = True) -> C:
    """A copy of `config` with `key.path=value` texts applied, as the command line gives them.

    Raises:
        ConfigError: Not of that form, unknown path, or the result is not valid.
    """
    changes = []
    for text in texts:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise ConfigError(f"'{text}': expected key.path=value, such as optim.lr=2e-4")
        changes.append((path.strip(), _Typed(value.strip())))
    return _override(config, changes, trust=trust)


def _override(config: C, changes: list[tuple[str, Any]], *, trust: bool) -> C:
    tree = dump(config)
    cls = type(config)
    for path, value in sorted(changes, key=_precedence):
        _set(cls, tree, path, value, trust)
    return build(cls, tree, trust=trust)


def _precedence(change: tuple[str, Any]) -> tuple[int, int]:
    """Kinds before variants before the rest; of kinds and variants the outer ones first.

    A whole configuration or mapping brings its kind along, so it counts as one, and what is set inside it
    comes later.
    """
    path, value = change
    plain = value.value() if isinstance(value, _Typed) else value
    last = path.rpartition(".")[2]
    if last == "kind" or isinstance(plain, Mapping | Config):
        return 0, path.count(".")
    return (1, path.count(".")) if last == "variant" else (2, 0)


def _set(cls: type[Config], tree: Tree, path: str, value: Any, trust: bool) -> None:
    """Set one dotted path in a tree, walking the classes so that a wrong name is noticed where it is."""
    parts = path.split(".")
    where = "config"
    node: Any = tree
    here: type[Config] | None = choose(cls, tree, path=where, trust=trust)
    container: type | None = Config
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if container in (Config, Mixture) and not isinstance(node, dict):
            raise ConfigError(f"{where}.{part}: '{where}' was set to {node!r}, which has no fields")
        if container is Config and here is not None:
            if last and part == "kind" and getattr(here.of, "family", None) is not None:
                _change_kind(here, node, _plain(value, str), where, trust)
                return
            if last and part == "variant" and "variant" not in here.model_fields:
                node.update(_dump(_variant(here, str(_plain(value, str)), where)))
                return
            if part not in here.model_fields:
                raise ConfigError(f"{where}.{part}: no such field{did_you_mean(part, here.model_fields)}")
            annotation = here.model_fields[part].annotation
            if last:
                node[part] = _plain(value, annotation)
                return
            item = config_class(annotation)
            where = f"{where}.{part}"
            if node.get(part) is None and item is not None and item[0] is Config:
                node[part] = {}
            node = node[part]
            container, here = item if item is not None else (None, None)
            if container is Config and here is not None and isinstance(node, dict):
                here = choose(here, node, path=where, trust=trust) if node else here
        elif container is Mixture and here is not None:
            if last:
                _set_item(node, part, _plain(value), where)
                return
            if part not in node:
                if parts[position + 1 :] != ["kind"]:
                    raise ConfigError(f"{where}.{part}: no such item{did_you_mean(part, node)}")
                node[part] = {}
            where = f"{where}.{part}"
            node, container = node[part], Config
            here = choose(here, node, path=where, trust=trust) if node else here
        else:
            node, container, here = _enter(node, part, where, last, _plain(value), here, trust)
            where = f"{where}.{part}"
            if last:
                return


def _plain(value: Any, annotation: Any = None) -> Any:
    return value.value(annotation) if isinstance(value, _Typed) else _dump(value)


def _set_item(mixture: Tree, name: str, value: Any, where: str) -> None:
    if value is not None:
        mixture[name] = value
    elif name in mixture:
        del mixture[name]
    else:
        raise ConfigError(f"{where}.{name}: no such item{did_you_mean(name, mixture)}")


def _enter(
    node: Any, part: str, where: str, last: bool, value: Any, here: type[Config] | None, trust: bool
) -> tuple[Any, type | None, type[Config] | None]:
    """One step into a list or plain dict."""
    if isinstance(node, list):
        if not part.isdigit() or int(part) >= len(node):
            raise ConfigError(f"{where}.{part}: expected a position from 0 to {len(node) - 1}")
        key: Any = int(part)
    elif isinstance(node, dict):
        key = part
    else:
        raise ConfigError(f"{where}.{part}: '{where}' is a single value and has no fields")
    if last:
        node[key] = value
        return None, None, None
    if isinstance(node, dict) and key not in node:
        raise ConfigError(f"{where}.{part}: no such item{did_you_mean(part, node)}")
    inner = node[key]
    if here is not None and isinstance(inner, dict):
        return inner, Config, choose(here, inner, path=f"{where}.{part}", trust=trust)
    return inner, None, None


def _variant(cls: type[Config], name: str, where: str) -> dict[str, Any]:
    try:
        return cls.variant_fields(name)
    except ConfigError as error:
        raise ConfigError(f"{where}.variant: {error}") from None


def _change_kind(cls: type[Config], node: Tree, kind: Any, where: str, trust: bool) -> None:
    """Another member of the family: fields that all members have are kept, the others start anew."""
    family = cls.of.family
    owner = family.find(str(kind), path=f"{where}.kind", trust=trust)
    if family.kind_of(owner) == node.get("kind"):
        return
    shared = next(c.Config for c in reversed(owner.__mro__) if c.__dict__.get("family") is family)
    kept = {name: node[name] for name in shared.model_fields if name in node}
    node.clear()
    node.update({"kind": family.kind_of(owner), **kept})
