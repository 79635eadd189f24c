"""Takes down what a program does to files, and makes the disk as a power cut in the middle would leave it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Operation:
    """One change: what (`write`, `sync`, `rename`, `mkdir`, `remove`, `create`), where, and with what."""

    kind: str
    path: str
    data: bytes = b""
    target: str = ""


@dataclass
class RecordedDisk:
    """Within `recording`, changes below `root` through Python's files and `os` are taken down."""

    root: Path
    operations: list[Operation] = field(default_factory=list)

    @contextlib.contextmanager
    def recording(self, monkeypatch):
        real_open, real_fsync = io.open, os.fsync

        def note(kind, path, **more):
            text = os.fspath(path)
            if text.startswith(str(self.root)):
                self.operations.append(Operation(kind, os.path.relpath(text, self.root), **more))

        def opened(file, mode="r", *args, **kwargs):
            stream = real_open(file, mode, *args, **kwargs)
            if isinstance(file, int):
                return stream
            if "w" in mode:
                note("create", file)
                real_write = stream.write

                def write(data):
                    raw = data.encode() if isinstance(data, str) else bytes(data)
                    note("write", file, data=raw)
                    return real_write(data)

                return _Wrapped(stream, write)
            return stream

        def fsync(descriptor):
            note("sync", os.readlink(f"/proc/self/fd/{descriptor}"))
            return real_fsync(descriptor)

        def two(kind, real):
            def call(source, target, **kwargs):
                note(kind, source, target=os.path.relpath(os.fspath(target), self.root))
                return real(source, target, **kwargs)

            return call

        def one(kind, real):
            def call(path, *args, **kwargs):
                if kwargs.get("dir_fd") is None:
                    note(kind, path)
                return real(path, *args, **kwargs)

            return call

        real_rmtree = shutil.rmtree
        with monkeypatch.context() as patch:
            patch.setattr(io, "open", opened)
            patch.setattr(os, "fsync", fsync)
            for name in ("replace", "rename"):
                patch.setattr(os, name, two("rename", getattr(os, name)))
            patch.setattr(os, "mkdir", one("mkdir", os.mkdir))
            patch.setattr(shutil, "rmtree", one("remove", real_rmtree))
            yield

    def after(self, count: int, start: Path, into: Path, *, keeps_names: bool) -> None:
        """The disk after the first `count` operations and a power cut.

        Contents that were not synchronised are lost. `keeps_names`: new names and removals got to the disk at
        once; otherwise those of a folder that was not synchronised since are lost too.
        """
        shutil.copytree(start, into, dirs_exist_ok=True)
        done = self.operations[:count]
        synced: dict[str, bytes] = {}
        content: dict[str, bytes] = {}
        for place, step in enumerate(done):
            lasting = keeps_names or self._folder_is_synced(done, place)
            if step.kind == "create":
                content[step.path] = b""
                if lasting:
                    (into / step.path).parent.mkdir(parents=True, exist_ok=True)
                    (into / step.path).write_bytes(b"")
            elif step.kind == "write":
                content[step.path] = content.get(step.path, b"") + step.data
            elif step.kind == "sync" and step.path in content:
                synced[step.path] = content[step.path]
                if (into / step.path).parent.is_dir():
                    (into / step.path).write_bytes(content[step.path])
            elif step.kind == "mkdir" and lasting:
                (into / step.path).mkdir(parents=True, exist_ok=True)
            elif step.kind == "rename":
                for held in (content, synced):
                    for path in [p for p in held if p == step.path or p.startswith(step.path + os.sep)]:
                        held[step.target + path[len(step.path) :]] = held.pop(path)
                if lasting and (into / step.path).exists():
                    os.rename(into / step.path, into / step.target)
            elif step.kind == "remove" and lasting:
                shutil.rmtree(into / step.path, ignore_errors=True)

    def _folder_is_synced(self, done: list[Operation], place: int) -> bool:
        folder = os.path.dirname(done[place].target or done[place].path) or "."
        # A file that is synchronised brings its own name to the disk.
        itself = done[place].path if done[place].kind == "create" else ""
        later = done[place + 1 :]
        return any(o.kind == "sync" and o.path in (folder, itself) for o in later)


class _Wrapped:
    """A stream whose writes are taken down."""

    def __init__(self, stream, write) -> None:
        self._stream, self.write = stream, write

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        self._stream.__enter__()
        return self

    def __exit__(self, *error):
        return self._stream.__exit__(*error)
