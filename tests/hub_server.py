"""Owns a small server that speaks as much of the Hugging Face hub's protocol as one dataset needs; knows no base."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_PAGES = re.compile(
    r"/api/datasets/([^/]+/[^/]+)(?:/(preupload|commit|revision|tree|paths-info)(?:/([^/]+))?(?:/(.*))?)?$"
)
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class Hub(ThreadingHTTPServer):
    """Datasets by id: for every commit, the files by name. ``fetched`` lists the files that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.fetched: list[str] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit_of(self, repo: str, revision: str) -> str:
        """Return the hash that stands for the main branch, or the commit itself.

        Raises:
            KeyError: There is neither.
        """
        count = len(self.commits[repo])
        names = {hashlib.sha1(f"{repo}{number}".encode()).hexdigest(): number for number in range(count)}
        if revision != "main" and revision not in names:
            raise KeyError(revision)
        return list(names)[-1] if revision == "main" else revision

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        """Return the files of a commit."""
        return next(
            files
            for number, files in enumerate(self.commits[repo])
            if hashlib.sha1(f"{repo}{number}".encode()).hexdigest() == commit
        )


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a hub on this machine's loopback."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.commits.setdefault(repo, [{}])
            self.server.private.setdefault(repo, asked.get("private") or asked.get("visibility") == "private")
            return self._json({"url": f"{self.server.address}/datasets/{repo}", "name": repo, "id": repo})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        found = _PAGES.match(path)
        if found and found[2] == "preupload":
            small = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._json({"files": [{"path": each["path"], **small} for each in json.loads(body)["files"]]})
        if found and found[2] == "commit":
            return self._commit(found[1], [json.loads(line) for line in body.splitlines() if line])
        return self._json({"error": f"POST {path}"}, 404)

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.commits[repo][-1])
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                files.pop(line["value"]["path"], None)
        self.server.commits[repo].append(files)
        commit = self.server.commit_of(repo, "main")
        self._json(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.server.address}/datasets/{repo}/commit/{commit}",
            }
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """Answer; a revision that is not there is told as the hub tells it."""
        try:
            self._get()
        except KeyError:
            self._send(404, b"{}", X_Error_Code="RevisionNotFound")

    def _get(self) -> None:
        path = unquote(urlsplit(self.path).path)
        found = _PAGES.match(path)
        if found and found[1] in self.server.commits:
            commit = self.server.commit_of(found[1], found[3] or "main")
            files = self.server.files(found[1], commit)
            if found[2] == "tree":
                sizes = [{"path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]
                return self._json([{"type": "file", **each} for each in sizes])
            told = {"private": False, "tags": [], "downloads": 0, "likes": 0}
            return self._json({"id": found[1], "sha": commit, "siblings": [{"rfilename": f} for f in files], **told})
        found = _FILE.match(path)
        if found and found[1] in self.server.commits:
            commit = self.server.commit_of(found[1], found[2])
            files = self.server.files(found[1], commit)
            if found[3] in files:
                data = files[found[3]]
                if self.command == "GET":
                    self.server.fetched.append(found[3])
                return self._send(200, data, ETag=f'"{_oid(data)}"', X_Repo_Commit=commit)
        return self._send(404, b"{}", X_Error_Code="RepoNotFound" if not found else "EntryNotFound")


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
