"""The members of a tar, found by walking its headers in memory, and the samples they make up.

One walker serves both the indexing of whole tars (mapped into memory) and the reading of one sample's bytes.
Nothing is ever extracted, and whatever could point outside a tar is refused all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from allsight.data.readers.file_names import leads_outside
from allsight.types import DataError

BLOCK = 512

_EMPTY = bytes(BLOCK)

_REGULAR = (b"0", b"\0", b"7")
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar.

    Args:
        name: As it stands there.
        key: The name up to the first dot of its last part.
        ending: What follows that dot, in lower case; empty where the file belongs to no sample.
        begin: Where its first header begins.
        data_at: Where its bytes begin.
        size: How many there are.
        end: Where the next header begins.
    """

    name: str
    key: str
    ending: str
    begin: int
    data_at: int
    size: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """The neighbouring members of one sample: from the first header to the end of the last padding."""

    key: str
    begin: int
    end: int
    members: tuple[Member, ...]


def walk(data: bytes | mmap, where: str) -> Iterator[Member]:
    """The regular files in a tar or in a piece of one that begins and ends between members.

    Folders are passed over. Names longer than 100 letters (GNU, pax) are understood.

    Raises:
        DataError: Not a tar, compressed, damaged or cut short; a link, device, pipe or sparse file; an
            absolute name, or one that climbs out of its folder.
    """
    at, length = 0, len(data)
    begin, long_name, long_size = None, None, None
    if data[:2] == b"\x1f\x8b" or data[:4] in (b"\x28\xb5\x2f\xfd", b"\xfd7zX"):
        raise DataError(f"{where}: a compressed tar cannot be read at random; unpack it to a plain .tar")
    while at < length:
        header = data[at : at + BLOCK]
        if header == _EMPTY:
            return
        if len(header) < BLOCK or not _is_header(header):
            raise DataError(f"{where}: no tar header at byte {at}; damaged or cut short, get it anew")
        kind, size = header[156:157], _number(header[124:136])
        if kind in _REGULAR and long_size is not None:
            size = long_size
        data_at = at + BLOCK
        end = data_at + -(-size // BLOCK) * BLOCK
        if size < 0 or end > length:
            raise DataError(f"{where}: cut short: the member at byte {at} ends at {end} of {length} bytes")
        begin = at if begin is None else begin
        if kind == b"L":
            long_name = _text(data[data_at : data_at + size])
        elif kind == b"x":
            extended = _extended(data[data_at : data_at + size], where, at)
            long_name = extended.get("path", long_name)
            long_size = int(extended["size"]) if extended.get("size", "").isdecimal() else long_size
        elif kind not in (b"g", b"K"):
            name = _checked(long_name if long_name is not None else _short_name(header), where)
            if kind in _REFUSED:
                raise DataError(f"{where}: {name!r} is {_REFUSED[kind]}; expected regular files only")
            if kind in _REGULAR:
                yield Member(name, *split_name(name), begin, data_at, size, end)
            elif kind != b"5":
                raise DataError(f"{where}: {name!r} is of the unknown kind {kind!r}; expected regular files")
            begin, long_name, long_size = None, None, None
        at = end


def spans(data: bytes | mmap, where: str) -> Iterator[Span]:
    """The samples of a tar. Neighbouring members whose names agree up to the first dot make up one.

    Members without a name before the dot or without an ending belong to no sample.

    Raises:
        DataError: As `walk`; a key that comes back after another one, or an ending that occurs twice.
    """
    seen: set[str] = set()
    current: list[Member] = []
    for member in walk(data, where):
        key = member.key
        if not member.ending:
            continue
        if current and current[0].key != key:
            yield _span(current, where)
            current = []
        if not current:
            if key in seen:
                raise DataError(
                    f"{where}: {member.name} is apart from the other files of {key!r}; the files of a sample "
                    "must follow one another (sort the names before writing the tar)"
                )
            seen.add(key)
        current.append(member)
    if current:
        yield _span(current, where)


def contents(data: bytes, where: str) -> tuple[str, dict[str, bytes]]:
    """Key of the one sample in these bytes, and its files by ending ("jpg", "cls", "000.jpg").

    Raises:
        DataError: As `spans`, or not exactly one sample.
    """
    members = [member for member in walk(data, where) if member.ending]
    keys = {member.key for member in members}
    if len(keys) != 1:
        raise DataError(f"{where}: {len(keys)} samples where the index says one; index the tar anew")
    return keys.pop(), {m.ending: data[m.data_at : m.data_at + m.size] for m in members}


def split_name(name: str) -> tuple[str, str]:
    """Key and ending of a member, parted at the first dot of its last part: "a/7.000.jpg" is "a/7",
    "000.jpg". The ending is in lower case, and empty where the member belongs to no sample."""
    base = name.rfind("/") + 1
    dot = name.find(".", base)
    return (name[:dot], name[dot + 1 :].lower()) if dot > base else (name, "")


def _span(members: list[Member], where: str) -> Span:
    key, endings = members[0].key, [member.ending for member in members]
    twice = next((ending for ending in endings if endings.count(ending) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the sample {key!r} has two files that end in .{twice}")
    return Span(key, members[0].begin, members[-1].end, tuple(members))


def _is_header(header: bytes) -> bool:
    """Whether the header's own sum is right (its field counts as blanks)."""
    try:
        stated = _number(header[148:156])
    except ValueError:
        return False
    return stated == sum(header[:148]) + sum(header[156:]) + 8 * 32


def _number(field: bytes) -> int:
    """A number as tars write it: octal digits, or binary with the highest bit set."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if digits else 0


def _short_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if header[257:263] == b"ustar\0" and prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _extended(block: bytes, where: str, at: int) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" of a pax header."""
    records: dict[str, str] = {}
    while block:
        length, _, _ = block.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(block):
            raise DataError(f"{where}: damaged extended header at byte {at}; get the tar anew")
        record = block[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        block = block[int(length) :]
    return records


def _checked(name: str, where: str) -> str:
    # A backslash divides names on Windows alone, and would make two samples of one.
    if "\\" in name or leads_outside(name):
        raise DataError(
            f"{where}: the name {name!r} leads outside the tar; expected relative names without '..'; "
            "whoever made it meant harm or erred, so take a copy you trust"
        )
    while name.startswith("./"):
        name = name[2:]
    return name
