from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.io.download import download

CONTENT = bytes(range(256)) * 9000  # more than one block
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/silent":
            threading.Event().wait(0.5)  # longer than the timeout
            return
        self.wfile.write(CONTENT[:1000] if self.path == "/short" else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_download_writes_the_file_and_reports_progress(server: str, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    download(
        f"{server}/file",
        tmp_path / "new" / "file",
        sha256=SHA256,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert len(calls) > 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "Not Found"),
        ("/short", "expected a file with sha256 .*, got 1,000 bytes"),
        ("/silent", "timed out"),
        ("/file", "expected a file with sha256 00000000..., got 2,304,000 bytes"),
    ],
)
def test_failed_download_is_one_line_and_leaves_no_file(server: str, tmp_path: Path, path: str, reason: str) -> None:
    sha256 = "0" * 64 if path == "/file" else SHA256
    with pytest.raises(UserError, match=f"{server}{path} was not downloaded: {reason}") as caught:
        download(f"{server}{path}", tmp_path / "file", sha256=sha256, timeout=0.2)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_download_without_a_server_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was not downloaded: .*refused"):
        download("http://127.0.0.1:9/file", tmp_path / "file", sha256=SHA256)


def test_download_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        download((tmp_path / "taken").as_uri(), tmp_path / "taken" / "file", sha256=SHA256)
