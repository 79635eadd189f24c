"""Configurations as trees, YAML and messages, on a toy family that has everything real ones have."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from allsight.config import (
    Config,
    ConfigError,
    Configured,
    Family,
    Mixture,
    apply_overrides,
    build,
    changed_lines,
    dump,
    dump_yaml,
    parse_value,
    parse_yaml,
    replace,
)
from allsight.config.base import import_file

SHAPES = Family(
    "shape", {"circle": f"{__name__}:Circle", "square": f"{__name__}:Square", "group": f"{__name__}:Group"}
)


class Fill(Configured):
    class Config(Config):
        opacity: float = Field(1.0, ge=0, le=1)
        dots: tuple[int, ...] = ()


class Shape(Configured):
    class Config(Config):
        colour: str = "red"
        weight: float = Field(1.0, ge=0)

    family: ClassVar[Family | None] = SHAPES


class Circle(Shape):
    variants: ClassVar[Any] = {"small": {"radius": 1.0, "rings": 1}, "large": {"radius": 9.0, "rings": 3}}

    class Config(Shape.Config):
        radius: float = Field(2.0, gt=0)
        rings: int = Field(1, ge=1)
        fill: Fill.Config = Fill.Config()


class Square(Shape):
    class Config(Shape.Config):
        sides: tuple[int, int] = (1, 1)
        border: Literal["none", "thin", "thick"] = "none"


class Group(Shape):
    class Config(Shape.Config):
        children: tuple[Shape.Config, ...] = ()


class Stranger(Shape):
    """Of the family, but not in its table."""

    class Config(Shape.Config):
        secret: int = 0


class Drawing(Configured):
    class Config(Config):
        title: str
        main: Shape.Config
        parts: Mixture[Shape.Config]
        extra: Shape.Config | None = None
        fill: Fill.Config | None = None
        file: Path | None = None
        note: str | None = None
        flag: bool = False
        count: int = 0
        share: float | tuple[tuple[int, float], ...] = 1.0

        @field_validator("title")
        @classmethod
        def _title_is_there(cls, title: str) -> str:
            if not title:
                raise ValueError("expected a title, got ''")
            return title

        @model_validator(mode="after")
        def _agree(self) -> Drawing.Config:
            if self.flag and self.count == 13:
                raise ValueError("flag=True and count=13 contradict each other; set flag=false")
            return self


def drawing(**changes: Any) -> Drawing.Config:
    fields: dict[str, Any] = {
        "title": "t",
        "main": Circle.Config(radius=3.5, fill=Fill.Config(opacity=0.5, dots=(1, 2))),
        "parts": Mixture(b=Square.Config(sides=(3, 4), border="thick"), a=Circle.Config(colour="blue")),
    }
    return Drawing.Config(**{**fields, **changes})


texts = st.text(
    st.sampled_from("aé 1.:#-'\"{}[],&*!|>%@\n\r\x85\u2028\t~") | st.characters(codec="utf-8"), max_size=8
)
unit = st.floats(0, 1)
fills = st.builds(Fill.Config, opacity=unit, dots=st.lists(st.integers(), max_size=3).map(tuple))
circles = st.builds(
    Circle.Config, colour=texts, radius=st.floats(1e-9, 1e9), rings=st.integers(1), fill=fills
)
squares = st.builds(
    Square.Config, colour=texts, weight=unit, border=st.sampled_from(["none", "thin", "thick"])
)
leaves = circles | squares
shapes = leaves | st.builds(Group.Config, children=st.lists(leaves, max_size=3).map(tuple))
item_names = st.from_regex(r"\A[a-z][a-z0-9_]{0,6}\Z") | st.sampled_from(
    ["on", "no", "yes", "null", "true", "y", "items"]
)
knots = st.lists(st.tuples(st.integers(0, 99), unit), min_size=1, max_size=3).map(tuple)
drawings = st.builds(
    Drawing.Config,
    title=texts.filter(bool),
    main=shapes,
    parts=st.dictionaries(item_names, shapes, max_size=3).map(Mixture),
    extra=st.none() | shapes,
    fill=st.none() | fills,
    file=st.none() | st.just(Path("a b/c.txt")),
    note=st.none() | texts,
    flag=st.booleans(),
    count=st.integers(14),
    share=unit | knots,
)


@given(drawings)
@settings(max_examples=30, deadline=None)
def test_a_configuration_survives_tree_yaml_and_pickle_with_its_hash(config: Drawing.Config) -> None:
    tree = dump(config)
    from_tree = build(Drawing.Config, tree)
    from_yaml = build(Drawing.Config, parse_yaml(dump_yaml(tree), where="here"))
    pickled = pickle.loads(pickle.dumps(config))
    assert from_tree == from_yaml == pickled == config
    assert hash(from_tree) == hash(from_yaml) == hash(pickled) == hash(config)
    assert dump_yaml(dump(from_yaml)) == dump_yaml(tree)


@given(drawings, drawings)
@settings(max_examples=30, deadline=None)
def test_marked_lines_are_still_the_same_yaml(config: Drawing.Config, base: Drawing.Config) -> None:
    marked = changed_lines(dump(config), dump(base))
    assert parse_yaml(marked, where="here") == dump(config)
    assert ("#" in marked) >= (config != base)


def test_only_lines_that_differ_are_marked() -> None:
    base = drawing()
    changed = replace(base, {"main.radius": 4.0, "count": 2, "parts.a": None})
    marked = [line for line in changed_lines(dump(changed), dump(base)).split("\n") if "#" in line]
    assert marked == [
        "  radius: 4.0  # changed, was 3.5",
        "  # a: removed",
        "count: 2  # changed, was 0",
    ]
    assert "#" not in changed_lines(dump(base), dump(base))


def test_subclasses_keep_their_own_fields_in_a_tree() -> None:
    tree = dump(drawing())
    assert tree["main"] == {
        "kind": "circle", "colour": "red", "weight": 1.0, "radius": 3.5, "rings": 1,
        "fill": {"opacity": 0.5, "dots": [1, 2]},
    }  # fmt: skip
    assert list(tree["parts"]) == ["b", "a"]


def test_defaults_fill_what_a_tree_leaves_out() -> None:
    tree = {"title": "t", "main": {"kind": "square"}, "parts": {}}
    assert build(Drawing.Config, tree) == Drawing.Config(title="t", main=Square.Config(), parts=Mixture())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"titel": "x"}, "config.titel: no such field; did you mean 'title'?"),
        (
            {"main": {"kind": "circle", "raduis": 1}},
            "config.main.raduis: no such field; did you mean 'radius'?",
        ),
        ({"main": {"kind": "circel"}}, "config.main.kind: no shape 'circel'; did you mean 'circle'?"),
        ({"main": {"radius": 1}}, "config.main.kind: required; one of circle, group, square"),
        ({"main": 5}, "config.main: expected a mapping of settings, got 5"),
        ({"main": {"kind": "circle", "radius": "wide"}}, "config.main.radius: expected float, got 'wide'"),
        ({"main": {"kind": "circle", "rings": 1.5}}, "config.main.rings: expected int, got 1.5"),
        ({"main": {"kind": "circle", "rings": True}}, "config.main.rings: expected int, got True"),
        ({"main": {"kind": "circle", "radius": False}}, "config.main.radius: expected float, got False"),
        (
            {"main": {"kind": "square", "border": "thik"}},
            "config.main.border: expected 'none', 'thin' or 'thick', got 'thik'; did you mean 'thick'?",
        ),
        ({"main": {"kind": "square", "sides": [1]}}, "config.main.sides.1: required, but not given"),
        (
            {"parts": {"a": {"kind": "circle", "fill": {"opacity": 2}}}},
            "config.parts.a.fill.opacity: input should be",
        ),
        ({"parts": {"Bad Name": {"kind": "circle"}}}, "config.parts.Bad Name"),
        ({"parts": [1]}, "config.parts: expected"),
        ({"share": "half"}, "config.share: expected float"),
        ({"share": [[0, "x"]]}, "config.share"),
        ({"flag": "perhaps"}, "config.flag: expected bool, got 'perhaps'"),
        ({"flag": True, "count": 13}, "config: flag=True and count=13 contradict each other; set flag=false"),
        ({"title": ""}, "config.title: expected a title, got ''"),
        ({"title": None}, "config.title: expected str, got None"),
        ({"count": float("inf")}, "config.count"),
        ({7: 1}, "config.7: no such field"),
        ({True: 1}, "config.True: no such field"),
        ({"main": {"kind": "circle", "fill": {"kind": "x"}}}, "config.main.fill.kind: no such field"),
    ],
)
def test_a_fault_is_one_line_with_its_full_path(change: dict[Any, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Drawing.Config, {**dump(drawing()), **change})
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^config\.title: required, but not given$"):
        build(Drawing.Config, {"main": {"kind": "circle"}, "parts": {}})


def test_several_faults_are_several_lines() -> None:
    tree = {**dump(drawing()), "titel": 1, "main": {"kind": "circle", "rings": 0, "colur": "x"}}
    with pytest.raises(ConfigError) as caught:
        build(Drawing.Config, tree)
    assert sorted(line.split(":")[0] for line in str(caught.value).split("\n")) == [
        "config.main.colur", "config.main.rings", "config.titel",
    ]  # fmt: skip


def test_faults_in_python_start_with_the_class() -> None:
    with pytest.raises(ConfigError, match=r"^Circle\.raduis: no such field; did you mean 'radius'\?$"):
        Circle.Config(raduis=1)


def test_a_configuration_of_the_wrong_family_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        drawing(main=Fill.Config())
    assert str(caught.value).startswith("Drawing.main: ") and "\n" not in str(caught.value)


def test_nothing_can_be_changed_in_place() -> None:
    config = drawing()
    with pytest.raises(Exception, match="frozen"):
        config.count = 3
    with pytest.raises(TypeError):
        config.parts["a"] = Circle.Config()


def test_code_outside_the_table_needs_trust(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "outside_shape.py").write_text("raise SystemExit('this code ran')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("outside_shape:Cat", f"{tmp_path}/outside_shape.py:Cat"):
        tree = {**dump(drawing()), "main": {"kind": kind}}
        with pytest.raises(ConfigError, match=r"^config\.main\.kind: .*--trust"):
            build(Drawing.Config, tree)
        with pytest.raises(SystemExit, match="this code ran"):
            build(Drawing.Config, tree, trust=True)


@pytest.mark.parametrize(
    "kind",
    [
        ":",
        ":X",
        "a:",
        "os:system",
        "os.path:",
        "..:x",
        ".x:y",
        "no_such_module:X",
        "/no/file.py:X",
        "pathlib:Path",
    ],
)
def test_a_kind_that_is_no_member_is_one_line_even_with_trust(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^config\.main\.kind: ") as caught:
        build(Drawing.Config, {**dump(drawing()), "main": {"kind": kind}}, trust=True)
    assert "\n" not in str(caught.value)


def test_a_member_outside_the_table_is_found_again_by_its_place() -> None:
    config = drawing(main=Stranger.Config(secret=5))
    tree = dump(config)
    assert tree["main"]["kind"] == f"{__name__}:Stranger"
    assert build(Drawing.Config, tree) == config


def test_a_users_file_is_found_again_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "my_hexagon_shape.py"
    file.write_text(
        f"from {__name__} import Shape\n"
        "class Hexagon(Shape):\n"
        "    class Config(Shape.Config):\n"
        "        corners: int = 6\n"
    )
    config = apply_overrides(drawing(), [f"main.kind={file}:Hexagon", "main.corners=7"])
    tree = dump(config)
    assert tree["main"] == {"kind": f"{file}:Hexagon", "colour": "red", "weight": 1.0, "corners": 7}
    assert build(Drawing.Config, tree, trust=True) == config


def test_files_beside_a_users_file_are_found_again_by_their_paths(tmp_path: Path) -> None:
    """Nothing else would have their folder on the path when a run is opened again."""
    (tmp_path / "shape_beside.py").write_text(
        f"from {__name__} import Circle\n\nclass Oval(Circle):\n    pass\n"
    )
    (tmp_path / "recipe_of_shapes.py").write_text("from shape_beside import Oval\n")
    module = import_file(tmp_path / "recipe_of_shapes.py")
    assert SHAPES.kind_of(module.Oval) == f"{tmp_path.resolve()}/shape_beside.py:Oval"


def test_a_module_that_is_not_on_the_path_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"No module named 'nowhere_to_be'.*; put the folder .* on PYTHONPATH"
    ):
        SHAPES.find("nowhere_to_be:Thing", trust=True)


def test_a_users_file_may_not_hide_a_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match="rename the file"):
        apply_overrides(drawing(), [f"main.kind={tmp_path}/json.py:X"])


def test_a_class_of_a_script_cannot_be_dumped() -> None:
    lonely = type("Lonely", (Shape,), {"__module__": "__main__"})
    with pytest.raises(ConfigError, match="__main__"):
        dump(drawing(main=lonely.Config()))


def test_a_subclass_without_settings_of_its_own_does_not_build_its_parent() -> None:
    class Dot(Circle):
        pass

    assert Dot.Config is not Circle.Config
    assert Dot.Config.of is Dot and Circle.Config.of is Circle
    assert Dot.Config() != Circle.Config()


@pytest.mark.parametrize("text", ["[1, 2", "a: [b", "\t: x", "a: 1\na: {"])
def test_text_that_is_not_yaml_is_one_line_naming_the_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: ") as caught:
        parse_yaml(text, where="my.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- 1", "word", "5"])
def test_yaml_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: expected a mapping of settings"):
        parse_yaml(text, where="my.yaml")


def test_a_key_given_twice_in_yaml_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^my\.yaml: .*'count' .*twice"):
        parse_yaml("title: a\ncount: 1\ncount: 2\n", where="my.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("1e-3", 1e-3), ("2E4", 2e4), ("0.5", 0.5), ("true", True), ("null", None), ("None", None),
        ("[1, 2]", [1, 2]), ("{a: 1}", {"a": 1}), ("abc", "abc"), ("a:b", "a:b"), ("1.2.3", "1.2.3"),
        ("[", "["), ("runs/2024", "runs/2024"), ("[1e-3, 2]", [1e-3, 2]),
    ],
)  # fmt: skip
def test_values_are_read_as_people_mean_them(text: str, value: Any) -> None:
    assert parse_value(text) == value
