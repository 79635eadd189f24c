"""Small tars and pictures for the tests of shards, and a web server with faults to order."""

import io
import re
import tarfile
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage


def jpeg(seed, height=16, width=24):
    """A picture of its own for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).resize((width, height)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    """A tar of (name, bytes) or ready TarInfo objects."""
    with tarfile.open(path, "w", format=format) as archive:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                name, data = entry
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def class_files(first, count, classes=3):
    """Members of an image-class tar."""
    for number in range(first, first + count):
        yield f"{number:05}.cls", str(number % classes).encode()
        yield f"{number:05}.jpg", jpeg(number)


def class_shards(folder, shards=3, each=8, split="train"):
    """A folder of image-class tars without indexes."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        write_tar(folder / f"{split}-{shard:05}.tar", class_files(shard * each, each))
    (folder / "classes.json").write_text('["a", "b", "c"]')
    return folder


class FaultServer:
    """Serves a folder over HTTP. Each request for a file whose name ends in `faulty` takes the next of
    `faults`, if there is one.

    Faults: a status ("500"), "hang" (no answer), "short" (half of the bytes, as a server that dies), "lie"
    (half of the bytes, and says so), "damage" (one bit wrong), "slow" (in small pieces), None (no fault).
    """

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self.faults: deque = deque()
        self.faulty = ""
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self.at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.closing = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                with server._lock:
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                    server.requests.append(self.path.partition("?")[0].lstrip("/"))
                    is_faulty = server.faults and server.requests[-1].endswith(server.faulty)
                    fault = server.faults.popleft() if is_faulty else None
                try:
                    time.sleep(server.delay_s)
                    server._answer(self, fault)
                except (BrokenPipeError, ConnectionResetError):
                    pass
                finally:
                    with server._lock:
                        server.at_once -= 1

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler, fault):
        if fault == "hang":
            self.closing.wait(30)
            return
        path = self.folder / handler.path.partition("?")[0].lstrip("/")
        if (fault or "").isdecimal() or not path.is_file():
            handler.send_response(int(fault) if (fault or "").isdecimal() else 404)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        data, status = path.read_bytes(), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        extra = {}
        if asked and self.ranges:
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            extra["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if fault == "damage":
            data = data[:-1] + bytes([data[-1] ^ 1]) if len(data) < 600 else data[:520] + b"?" + data[521:]
        sent = data[: len(data) // 2] if fault in ("short", "lie") else data
        handler.send_response(status)
        for name, value in extra.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(sent) if fault == "lie" else len(data)))
        handler.end_headers()
        if fault == "slow":
            for at in range(0, len(sent), 1024):
                handler.wfile.write(sent[at : at + 1024])
                handler.wfile.flush()
                time.sleep(0.01)
        else:
            handler.wfile.write(sent)


@contextmanager
def serving(folder, **options):
    server = FaultServer(folder, **options)
    try:
        yield server
    finally:
        server.close()
