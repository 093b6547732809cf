"""Uploads through huggingface_hub's own HTTP client to a server on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm_ae.core.errors import UserError
from ldm_ae.interop import hub_upload
from ldm_ae.interop.hub_upload import check_repository, check_upload, upload_model
from tests.hub_server import HubServer, hub_server

pytestmark = pytest.mark.slow

NAME = "owner/name"
CONTENTS = {
    "README.md": b"---\nlicense: mit\n---\n# name\n", "config.json": b"{}\n", "training/config.yaml": b"seed: 0\n",
    "diffusion_pytorch_model.safetensors": bytes(range(256)) * 40, "pictures.png": b"\x89PNG" + bytes(200),
}  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


def push(folder: Path, *, private: bool = False, revision: str | None = None) -> str:
    exists = check_upload(NAME, private=private)
    return upload_model(folder, NAME, exists=exists, private=private, revision=revision, message="A model")


@pytest.mark.parametrize("private", [False, True])
def test_upload_creates_the_repository_and_commits_every_file_once(
    private: bool, server: HubServer, folder: Path
) -> None:
    assert push(folder, private=private) == f"{server.url}/owner/name"
    assert server.private == {NAME: private}
    assert server.files == {f"{NAME}@main": CONTENTS}
    assert server.messages == ["A model"]
    assert server.without_token == []
    # The first question is ours; the others are the library's, which validates twice and in old versions asks more.
    asked = [
        re.sub(r"PUT /lfs/\w+", "PUT /lfs/SHA", request) for request in server.asked() if "/revision/" not in request
    ]
    assert asked == [
        f"GET /api/models/{NAME}", "POST /api/repos/create", *["POST /api/validate-yaml"] * 2,
        f"POST /api/models/{NAME}/preupload/main", f"POST /{NAME}.git/info/lfs/objects/batch",
        *["PUT /lfs/SHA"] * 2, f"POST /api/models/{NAME}/commit/main",
    ]  # fmt: skip
    assert server.json_of("POST /api/validate-yaml")["content"] == CONTENTS["README.md"].decode()
    created = server.json_of("POST /api/repos/create")
    assert (created["name"], created["organization"]) == ("name", "owner")


def test_upload_to_an_existing_repository_keeps_its_visibility(server: HubServer, folder: Path) -> None:
    server.private[NAME] = True
    push(folder)
    assert server.private == {NAME: True}
    assert "POST /api/repos/create" not in server.asked()
    server.private[NAME] = False
    server.requests.clear()
    with pytest.raises(UserError, match="owner/name exists on the Hugging Face hub and is public; --private makes"):
        push(folder, private=True)
    assert server.asked() == [f"GET /api/models/{NAME}"]


def test_upload_to_a_branch_creates_it_and_leaves_main(server: HubServer, folder: Path) -> None:
    server.private[NAME] = False
    assert push(folder, revision="v1.0") == f"{server.url}/owner/name/tree/v1.0"
    assert f"POST /api/models/{NAME}/branch/v1.0" in server.asked()
    assert server.files == {f"{NAME}@v1.0": CONTENTS}


def test_missing_token_is_refused_without_a_request(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"needs a token: run `hf auth login` .*; --folder DIR writes the same files"):
        push(folder)
    assert server.asked() == []


def test_wrong_token_is_refused_before_anything_is_created(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"the hub does not accept the token.*; run `hf auth login`"):
        push(folder)
    assert server.asked() == [f"GET /api/models/{NAME}"]


def test_offline_mode_is_named(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from tests.hub_server import _forget_sessions

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _forget_sessions()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; unset it, or --folder DIR writes"):
        push(folder)
    assert server.asked() == []


CREATE, COMMIT = r"POST /api/repos/create", r"POST /api/models/.*/commit/.*"
REFUSALS = (
    (CREATE, 403, r"the token may not write there \(told to fail with 403\); run `hf auth login`"),
    (CREATE, 404, r"there is no owner 'owner', or no such repository"),
    (COMMIT, 401, "the hub does not accept the token"),
    (COMMIT, 403, "the token may not write there"),
    (COMMIT, 404, "there is no owner 'owner', or no such repository"),
    (COMMIT, 409, r"the repository changed meanwhile or has a conflict \(told to fail with 409\); run the command"),
    (COMMIT, 413, r"the hub refused the request with status 413 \(told to fail with 413\)"),
    (COMMIT, 429, r"too many requests \(told to fail with 429\); wait"),
    (COMMIT, 500, r"the hub failed with status 500 \(told to fail with 500\); run the command again later"),
)


@pytest.mark.parametrize(("request_", "status", "words"), REFUSALS, ids=lambda value: str(value)[-12:])
def test_refused_request_is_one_line_that_says_what_to_do(
    request_: str, status: int, words: str, server: HubServer, folder: Path
) -> None:
    server.fail[request_] = status
    with pytest.raises(UserError, match=rf"^cannot upload to owner/name on the Hugging Face hub: {words}") as caught:
        push(folder)
    assert str(caught.value).isprintable()
    assert server.files == {}


def test_failed_upload_of_weights_is_reported_with_its_cause(server: HubServer, folder: Path) -> None:
    server.fail["PUT /lfs/.*"] = 403
    with pytest.raises(UserError, match="cannot upload to owner/name on the Hugging Face hub: the token may not write"):
        push(folder)
    assert server.files == {}


def test_refused_metadata_is_reported(server: HubServer, folder: Path) -> None:
    server.metadata_errors = ['"license" must be one of [apache-2.0, mit, ...]']
    with pytest.raises(
        UserError, match=r'the hub refused the request: Invalid metadata in README.md. - "license" must'
    ):
        push(folder)
    assert server.files == {}


@pytest.mark.parametrize("pattern", [r"GET .*", CREATE, COMMIT])
def test_silent_hub_ends_the_wait(
    pattern: str, server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fail[pattern] = 0
    monkeypatch.setattr(hub_upload, "SECONDS_OF_A_QUESTION", 0.2 if pattern.startswith("GET") else 4.0)
    monkeypatch.setattr(hub_upload, "SECONDS", 0.3 if pattern == CREATE else 10.0)
    monkeypatch.setattr(hub_upload, "SECONDS_OF_A_COMMIT", 1.0 if pattern == COMMIT else 10.0)
    with pytest.raises(UserError, match=r"no answer within \d+ s|it was not reached \(.*time.*\)"):
        push(folder)


def test_unreachable_hub_is_named(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"it was not reached \(.*\); check the network and run|no answer within"):
        push(folder)


def test_other_exceptions_are_raised_as_they_are(server: HubServer, folder: Path) -> None:
    server.private[NAME] = False
    with pytest.raises(TypeError, match="bytes is not JSON serializable"):
        upload_model(folder, NAME, exists=True, private=False, revision=None, message=b"x")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["name", "a/b/c", "owner/", "/name", "a b/c", "a/../b", "owner/na--me", "hf:", "ö/x"])
def test_impossible_repository_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="cannot be a repository on the Hugging Face hub; give OWNER/NAME"):
        check_repository(name)
    assert check_repository("hf:owner/na.me-1") == "owner/na.me-1"
