"""Owns an S3-compatible server in a process of its own, and machines beside this one that use it; must not know pytest.

The server takes one request at a time, so that its conditional writes are atomic, as those of S3 are.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import small_base
from redi.knowledge_base import KnowledgeBase
from redi.knowledge_base.growth import Growth, add_grown

BUCKET = "bases"
_SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""


@contextmanager
def serving(log: Path) -> Iterator[dict[str, str]]:
    """Run a server with an empty bucket on this machine's loopback; gives the environment that its users need."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with open(log, "wb") as output:
        process = subprocess.Popen([sys.executable, "-c", _SERVER, str(port)], stdout=output, stderr=output)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _until_up(process, endpoint, log)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        yield {"AWS_ENDPOINT_URL": endpoint, **keys}
    finally:
        process.kill()
        process.wait()


def _until_up(process: subprocess.Popen[bytes], endpoint: str, log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {log.read_text()}") from None
            time.sleep(0.1)


@contextmanager
def careless() -> Iterator[str]:
    """Run a store that keeps objects and no conditions, as some do; gives its endpoint."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(200, b"<DeleteResult/>")

        def do_GET(self) -> None:
            self._answer(200 if self.path in objects else 404, objects.get(self.path, b""))

        def do_DELETE(self) -> None:
            objects.pop(self.path, None)
            self._answer(204)

        def _answer(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("ETag", '"always-the-same"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def build_elsewhere(environment: dict[str, str], address: str, units: int, channel: Connection) -> None:
    """Build as a machine with a working copy of its own does."""
    os.environ |= environment
    small_base.build(address, units, channel)


def grow_elsewhere(environment: dict[str, str], address: str, first: int) -> None:
    """Add six units as growth does, on a machine of its own."""
    os.environ |= environment
    base = KnowledgeBase.open(address)
    for unit in range(first, first + 6):
        add_grown(base, small_base.unit_batch(unit), Growth(), {}, 1.0)


def write_on(environment: dict[str, str], address: str, enough: Event) -> None:
    """Add units without a pause, on a machine of its own."""
    os.environ |= environment
    base, unit = KnowledgeBase.open(address), 100
    while not enough.is_set():
        base.add_unit(unit, small_base.unit_batch(unit, rows=1))
        unit += 1
