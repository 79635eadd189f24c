"""Annotations of Pascal VOC: one xml a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


@dataclass(frozen=True)
class VocObject:
    """One annotated thing: the corners as written, whose pixels count as part of it."""

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """One file. `width` and `height` are 0 where it does not say."""

    width: int
    height: int
    objects: tuple[VocObject, ...]


def parse_annotation(data: bytes) -> VocAnnotation:
    """Read a file.

    Raises:
        ValueError: Not xml, or of another structure; xml with a document type is refused, since that is where
            entities come from that read other files or fill the memory.
    """
    root = _parse(data)
    if root.tag != "annotation":
        raise ValueError(f"the xml begins with <{root.tag[:40]}>; expected <annotation>")
    size = root.find("size")
    width, height = (0, 0) if size is None else (int(_number(size, key)) for key in ("width", "height"))
    return VocAnnotation(width, height, tuple(_object(element) for element in root.iter("object")))


def _object(element: Element) -> VocObject:
    name = (element.findtext("name") or "").strip()
    box = element.find("bndbox")
    if not name or box is None:
        raise ValueError("an <object> has no <name> or no <bndbox>")
    left, top, right, low = (_number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    return VocObject(name, (left, top, right, low), (element.findtext("difficult") or "0").strip() == "1")


def _number(element: Element, key: str) -> float:
    text = element.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"<{element.tag}> has <{key}> {text!r}; expected a number") from None


def _parse(data: bytes) -> Element:
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"not xml ({error})") from None
    return builder.close()


def _refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("the xml has a document type (<!DOCTYPE>), which annotations have no need of")
