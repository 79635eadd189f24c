"""A frozen mapping that keeps its order: the tasks of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

Item = TypeVar("Item")


class Mixture(Mapping[str, Item], Generic[Item]):
    """Named items in a fixed order: `Mixture(in1k=Classification.Config(...), coco=...)`.

    Equality and hash see the order, since the order of tasks decides how steps are drawn.
    """

    def __init__(self, items: Mapping[str, Item] | None = None, /, **named: Item) -> None:
        self._items: dict[str, Item] = {**(items or {}), **named}

    def __getitem__(self, name: str) -> Item:
        return self._items[name]

    def __getattr__(self, name: str) -> Item:
        if name.startswith("_") or name not in self._items:
            raise AttributeError(
                f"mixture has no item '{name}'; it has {', '.join(self.__dict__.get('_items', ()))}"
            )
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mixture) and list(self._items.items()) == list(other._items.items())

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return f"Mixture({', '.join(f'{name}={item!r}' for name, item in self._items.items())})"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        item_types = get_args(source)
        item = handler.generate_schema(item_types[0]) if item_types else core_schema.any_schema()
        names = core_schema.str_schema(pattern=r"^[a-z][a-z0-9_]*$")
        inner = core_schema.dict_schema(names, item)
        return core_schema.no_info_before_validator_function(
            lambda value: dict(value._items) if isinstance(value, Mixture) else value,
            core_schema.no_info_after_validator_function(cls, inner),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda mixture: dict(mixture._items), return_schema=inner
            ),
        )
