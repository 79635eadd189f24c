"""A class and its typed `Config` live together; a `Family` tells the members of a contract apart by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from allsight.config.errors import ConfigError, did_you_mean

C = TypeVar("C", bound="Config")

Variants = Mapping[str, Mapping[str, Any]]
"""Variant name -> the fields it sets; every variant of a class sets the same fields."""


class Config(BaseModel):
    """Base of all settings: frozen, plain data only, unknown fields are errors.

    Nested inside the class it configures (its `of`); `kind` is derived from that class, never declared.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        polymorphic_serialization=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    of: ClassVar[Any] = None

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            from allsight.config.tree import explain

            name = type(self).__qualname__.removesuffix(".Config")
            raise ConfigError("\n".join(explain(type(self), error, path=name))) from None

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: Any) -> Any:
        """Pydantic takes `true` for 1; whoever writes `steps: true` means something else."""
        if isinstance(value, bool):
            from allsight.config.tree import refuses_truth

            expected = refuses_truth(cls.model_fields[str(info.field_name)].annotation)
            if expected:
                raise ValueError(f"expected {expected}, got {value}")
        return value

    def __repr_name__(self) -> str:
        return type(self).__qualname__

    @classmethod
    def variant(cls: type[C], name: str, **changes: Any) -> C:
        """The configuration of a named variant, with `changes` on top.

        Raises:
            ConfigError: No variant of that name.
        """
        return cls(**{**cls.variant_fields(name), **changes})

    @classmethod
    def variant_fields(cls, name: str) -> dict[str, Any]:
        """The fields that variant `name` sets."""
        variants: Variants = getattr(cls.of, "variants", {})
        if name not in variants:
            owner = cls.__qualname__.removesuffix(".Config")
            raise ConfigError(f"{owner} has no variant '{name}'{did_you_mean(name, variants)}")
        return dict(variants[name])

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The object this configures: `Owner(config, ...)`."""
        return type(self).of(self, *args, **kwargs)


_NoSettings = Config


class Configured:
    """Mixin that links a class to its nested `Config`.

    A subclass without its own `Config` gets a fresh one, so that building from it never makes the parent.
    """

    Config: ClassVar[Any] = _NoSettings
    family: ClassVar[Family | None] = None
    variants: ClassVar[Variants] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" not in cls.__dict__:
            namespace = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config"}
            cls.Config = type("Config", (cls.Config,), namespace)
        cls.Config.of = cls
        fields_set = {frozenset(fields) for fields in cls.variants.values()}
        assert len(fields_set) <= 1, f"variants of {cls.__qualname__} must all set the same fields"


class Family:
    """The members of one contract by name, imported when first asked for.

    Args:
        what: What a member is called in messages, such as `task`.
        table: Name -> `package.module:Class`.
    """

    def __init__(self, what: str, table: Mapping[str, str]) -> None:
        self.what = what
        self.table = dict(table)

    def kind_of(self, owner: type) -> str:
        """The name under which `owner` can be found again.

        Raises:
            ConfigError: The class was defined in a script's `__main__`, where nobody else can find it.
        """
        place = f"{owner.__module__}:{owner.__qualname__}"
        for name, known in self.table.items():
            if known == place:
                return name
        if owner.__module__ == "__main__":
            raise ConfigError(
                f"{self.what} {owner.__qualname__} is defined in a script run as __main__, so a saved run "
                f"could not find it again; move it into a file of its own and import it"
            )
        source = getattr(sys.modules.get(owner.__module__), "__allsight_file__", None)
        return f"{source}:{owner.__qualname__}" if source else place

    def find(self, kind: str, *, path: str = "", trust: bool = False) -> type:
        """The member called `kind`: a name of the table, `module:Class`, or `file.py:Class`.

        Args:
            path: Where in the configuration it was named, for the message.
            trust: Allow importing code that is not in the table. True only for what the user named himself.
        Raises:
            ConfigError: Unknown, not importable, of another family, or not trusted.
        """
        where = f"{path}: " if path else ""
        if kind in self.table:
            place = self.table[kind]
        elif ":" in kind:
            if not trust and not _is_loaded(kind):
                raise ConfigError(
                    f"{where}{self.what} '{kind}' is code outside allsight and was not named by you; "
                    f"pass --trust if you trust where this configuration comes from"
                )
            place = kind
        else:
            raise ConfigError(f"{where}no {self.what} '{kind}'{did_you_mean(kind, self.table)}")
        module_name, _, class_name = place.rpartition(":")
        if not all(part.isidentifier() for part in class_name.split(".")):
            raise ConfigError(f"{where}expected a {self.what} as module:Class or file.py:Class, got '{kind}'")
        try:
            module = import_file(Path(module_name)) if module_name.endswith(".py") else _import(module_name)
            owner: Any = module
            for part in class_name.split("."):
                owner = getattr(owner, part)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from None
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{where}cannot import {self.what} '{kind}': {error}; put the folder of its module on "
                "PYTHONPATH"
            ) from error
        except (ImportError, AttributeError, OSError, SyntaxError) as error:
            raise ConfigError(f"{where}cannot import {self.what} '{kind}': {error}") from error
        if not (isinstance(owner, type) and issubclass(owner, Configured) and owner.family is self):
            raise ConfigError(f"{where}'{kind}' is not a {self.what}")
        return owner


def import_file(file: Path) -> Any:
    """Import a user's file by its stem, with its folder on the path so that workers find it too.

    Raises:
        ConfigError: No such file, or its name hides a module that is already there.
    """
    file = file.expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    loaded = sys.modules.get(file.stem)
    if loaded is not None:
        if getattr(loaded, "__file__", None) and Path(str(loaded.__file__)).resolve() == file:
            return loaded
        raise ConfigError(f"{file}: a module called '{file.stem}' is loaded already; rename the file")
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    if "." in file.stem:
        raise ConfigError(f"{file}: its name has a dot too many to be imported; rename the file")
    known = set(sys.modules)
    module = importlib.import_module(file.stem)
    if module.__file__ is None or Path(module.__file__).resolve() != file:
        raise ConfigError(f"{file}: its name hides the module {module.__file__}; rename the file")
    # What it imported from beside it can be found again only as a file, too: nobody else has that folder on
    # the path.
    for name in set(sys.modules) - known:
        source = getattr(sys.modules[name], "__file__", None)
        if "." not in name and source is not None and Path(source).resolve().parent == file.parent:
            sys.modules[name].__dict__["__allsight_file__"] = str(Path(source).resolve())
    return module


def _import(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"'{name}' is not the name of a Python module")
    return importlib.import_module(name)


def _is_loaded(kind: str) -> bool:
    """Whether the code behind `kind` runs in this process already, so that naming it imports nothing new."""
    module_name = kind.rpartition(":")[0]
    if module_name.endswith(".py"):
        return any(getattr(m, "__allsight_file__", None) == module_name for m in list(sys.modules.values()))
    return module_name in sys.modules
