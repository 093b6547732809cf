"""The HTTP interface of the Hugging Face hub on this machine, for uploads.

huggingface_hub talks to it through its own HTTP client, httpx or requests by its version; nothing of the library is
replaced. Only its constants point here, because it reads them from the environment when it is imported.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

TOKEN = "hf_of_a_test"
_LARGE = (".safetensors", ".png")


class HubServer(ThreadingHTTPServer):
    """Repositories, commits and a log of the requests. `fail` makes a kind of request fail."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, Any]] = []
        """Method, path and JSON of each request, in order."""
        self.private: dict[str, bool] = {}
        """Visibility of each repository."""
        self.files: dict[str, dict[str, bytes]] = {}
        """Contents of the committed files by `owner/name@branch`."""
        self.messages: list[str] = []
        """First lines of the commits' messages."""
        self.without_token: list[str] = []
        """Method and path of the requests to repositories that do not carry the token."""
        self.large: dict[str, bytes] = {}
        """Uploaded contents by their sha256."""
        self.fail: dict[str, int] = {}
        """Statuses by patterns of `METHOD path`; 0 never answers."""
        self.metadata_errors: list[str] = []
        self.released = Event()

    def asked(self) -> list[str]:
        """Return method and path of each request."""
        return [f"{method} {path}" for method, path, _ in self.requests]

    def json_of(self, pattern: str) -> Any:
        """Return the JSON of the requests that match, which is the same in all of them."""
        found = [body for method, path, body in self.requests if re.fullmatch(pattern, f"{method} {path}")]
        assert all(body == found[0] for body in found)
        return found[0]


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path == "/api/agent-harnesses":  # huggingface_hub 2 asks it once in a process, for its User-Agent
            self._send(404, {})
            return
        is_json = "json" in (self.headers.get("Content-Type") or "") and "ndjson" not in self.headers["Content-Type"]
        self.server.requests.append((self.command, path, json.loads(body) if is_json else None))
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.server.without_token.append(f"{self.command} {path}")
        for pattern, status in self.server.fail.items():
            if re.fullmatch(pattern, f"{self.command} {path}"):
                if status == 0:
                    self.server.released.wait(30)
                    self.close_connection = True
                else:
                    self._send(status, {"error": f"told to fail with {status}"})
                return
        for pattern, answer in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                answer(self, body, *found.groups())
                return
        self._send(404, {"error": f"no such address: {path}"})

    def _send(self, status: int, value: Any, **headers: str) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def info(self, body: bytes, repository: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials in "
                       "Authorization header")  # fmt: skip
        elif repository not in self.server.private:
            self._send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            self._send(200, {"id": repository, "modelId": repository, "sha": "0" * 40, "siblings": [], "tags": [],
                             "private": self.server.private[repository], "downloads": 0, "likes": 0})  # fmt: skip

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repository = f"{asked['organization']}/{asked['name']}"
        # The key is `visibility` since huggingface_hub 1, `private` before.
        self.server.private[repository] = asked.get("visibility") == "private" or bool(asked.get("private"))
        self._send(200, {"url": f"{self.server.url}/{repository}"})

    def branch(self, body: bytes, repository: str, branch: str) -> None:
        self._send(200, {})

    def validate(self, body: bytes) -> None:
        errors = [{"message": message} for message in self.server.metadata_errors]
        self._send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repository: str, branch: str) -> None:
        files = [
            {"path": file["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular"}
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": files})

    def batch(self, body: bytes, repository: str) -> None:
        objects = [
            {"oid": item["oid"], "size": item["size"],
             "actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]  # fmt: skip
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._send(200, {})

    def commit(self, body: bytes, repository: str, branch: str) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.server.files.setdefault(f"{repository}@{branch}", {})
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert (line["key"], value["algo"]) == ("lfsFile", "sha256")
                files[value["path"]] = self.server.large[value["oid"]]
        self._send(200, {"success": True, "commitOid": "1" * 40, "hookOutput": "",
                         "commitUrl": f"{self.server.url}/{repository}/commit/{'1' * 40}"})  # fmt: skip


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (rf"GET /api/models/{_NAME}(?:/revision/[\w.%-]+)?", _Handler.info),
    (r"POST /api/repos/create", _Handler.create),
    (rf"POST /api/models/{_NAME}/branch/([\w.%-]+)", _Handler.branch),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_NAME}/preupload/([\w.%-]+)", _Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /lfs/(\w+)", _Handler.put),
    (rf"POST /api/models/{_NAME}/commit/([\w.%-]+)", _Handler.commit),
)


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[HubServer]:
    """Serve, and point huggingface_hub at the server: online, with a token, and without the storage client in Rust,
    which talks to servers of its own."""
    from huggingface_hub import constants

    server = HubServer()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    _forget_sessions()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        _forget_sessions()


def _forget_sessions() -> None:
    """Close connections; before huggingface_hub 1, a session also keeps whether the library is offline."""
    from huggingface_hub import utils

    (getattr(utils, "close_session", None) or utils._http.reset_sessions)()
