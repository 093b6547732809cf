"""Names on the hub: which are looked up, the class that is opened, and every failure under its own name."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.io import hub
from ldm_ae.io.hub_names import is_hub_name
from ldm_ae.models import KLAutoencoder, VQAutoencoder, is_model_folder, load_autoencoder
from ldm_ae.quantizers import FSQ, VQ

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


class FakeHub:
    """The hub's library over folders of this machine, with a log of the requests."""

    def __init__(self, root: Path):
        self.root, self.asked = root, list[str]()
        self.raised: Exception | None = None
        """The answer to the question whether there is a repository."""
        self.broken: Exception | None = None
        """The end of each download."""
        self.wait = Event()
        self.wait.set()

    def model_info(self, repository: str, *, timeout: float) -> SimpleNamespace:
        self.asked.append(repository)
        assert timeout == hub.SECONDS
        self.wait.wait(10)
        if self.raised is not None:
            raise self.raised
        there = self.root / "hub" / repository
        names = [path.relative_to(there).as_posix() for path in sorted(there.rglob("*")) if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        there, cached = self.root / "hub" / repository, self.root / "cache" / repository
        if local_files_only:
            if not cached.is_dir():
                raise LocalEntryNotFoundError("Cannot find")
            return str(cached)
        if self.broken is not None:
            raise self.broken
        for path in sorted(there.rglob("*")):
            name = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cached / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cached / name)
        return str(cached)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    monkeypatch.chdir(tmp_path)
    return fake


def of_hub(kind: type[OSError], message: str) -> OSError:
    """An error of the hub's library without a server's response, whose class differs from version to version."""
    error = kind.__new__(kind)
    OSError.__init__(error, message)
    return error


def test_model_class_follows_the_hub_repository(fake: FakeHub, tmp_path: Path) -> None:
    models = {
        "kl": KLAutoencoder(**SMALL), "vq": VQAutoencoder(quantizer=VQ(8, 4), **SMALL),
        "fsq": VQAutoencoder(quantizer=FSQ((5, 5)), **SMALL),
    }  # fmt: skip
    for name, model in models.items():
        for place in (name, f"pipeline-{name}/{'vqvae' if name == 'vq' else 'vae'}"):
            model.save_pretrained(tmp_path / "hub/owner" / place)
        (tmp_path / f"hub/owner/pipeline-{name}/unet.bin").write_bytes(b"large")
        x = torch.rand(1, 3, 16, 16)
        for repository in (f"owner/{name}", f"hf:owner/{name}", f"owner/pipeline-{name}"):
            loaded = load_autoencoder(repository)
            assert type(loaded) is type(model)
            assert torch.equal(loaded.encode(x).mode(), model.eval().encode(x).mode())
            assert loaded.net.config["_name_or_path"] == ""
    assert not list((tmp_path / "cache").rglob("*.bin"))  # only configurations and safetensors
    # Training starts from either by name, and refuses the wrong class.
    assert isinstance(VQAutoencoder(pretrained="owner/vq").quantizer, VQ)
    assert KLAutoencoder(pretrained="owner/pipeline-kl").latent_spec.channels == 4
    with pytest.raises(UserError, match="holds a VQModel, not a AutoencoderKL"):
        KLAutoencoder(pretrained="owner/vq")


def test_hub_repositories_without_an_autoencoder_are_refused(fake: FakeHub, tmp_path: Path) -> None:
    there = tmp_path / "hub/owner"
    (there / "files").mkdir(parents=True)
    (there / "files/model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'owner/files' on the Hugging Face hub is not a diffusers model or pipeline"):
        load_autoencoder("owner/files")
    (there / "unet").mkdir()
    (there / "unet/config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(
        UserError, match=r"^owner/unet holds a UNet2DModel, a diffusion model .*: AsymmetricAutoencoderKL"
    ):
        load_autoencoder("owner/unet")
    KLAutoencoder(**SMALL).save_pretrained(there / "pickled")
    (there / "pickled/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights .*pickled weights are not read"):
        load_autoencoder("owner/pickled")


class UnreachableError(Exception):
    """An error of the library's HTTP client, which is not an OSError."""

    __module__ = "httpx2._exceptions"


UNREACHABLE = (
    (of_hub(RepositoryNotFoundError, "404 Client Error"), "there is no such repository, or it is private; check"),
    (of_hub(HfHubHTTPError, "502 Bad Gateway"), "the request failed: .*502"),
    (
        UnreachableError("[Errno -2] Name or service not known"),
        r"it was not reached \(\[Errno -2\] Name or service not kn",
    ),
    (ConnectionError("reset by peer"), r"it was not reached \(reset by peer\), and the cache does not have it"),
    (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set, and the cache does not have it"),
    (ValueError("Repo id must be"), "there can be no such name: Repo id must be"),
)


@pytest.mark.parametrize(("error", "words"), UNREACHABLE, ids=lambda value: type(value).__name__)
def test_failed_question_is_asked_once_and_refused_in_one_line(error: Exception, words: str, fake: FakeHub) -> None:
    fake.raised = error
    for name, begin in (("owner/name", r"no such model: owner/name is not a path here \(there is no folder owner; "),
                        ("hf:owner/name", "no such model: owner/name on the Hugging Face hub: ")):  # fmt: skip
        with pytest.raises(UserError, match=f"^{begin}.*{words}") as caught:
            load_autoencoder(name)
        assert str(caught.value).isprintable()
    assert fake.asked == ["owner/name"] * 2


@pytest.mark.parametrize("error", [error for error, _ in UNREACHABLE[1:5]], ids=lambda error: type(error).__name__)
def test_cached_model_opens_without_the_hub(error: Exception, fake: FakeHub, tmp_path: Path) -> None:
    KLAutoencoder(**SMALL).save_pretrained(tmp_path / "hub/owner/name/vae")
    expected = load_autoencoder("owner/name")
    shutil.rmtree(tmp_path / "hub")
    fake.raised = error
    for name in ("owner/name", "hf:owner/name", "hf:owner/name/vae"):
        found = load_autoencoder(name)
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_other_exceptions_are_raised_as_they_are(fake: FakeHub) -> None:
    fake.raised = KeyError("a defect")
    with pytest.raises(KeyError, match="a defect"):
        load_autoencoder("owner/name")


def test_no_answer_ends_the_wait(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", -0.9)  # and a second more
    fake.wait.clear()
    with pytest.raises(UserError, match=r"no answer within .* s, and the cache does not have it"):
        load_autoencoder("hf:owner/name")
    fake.wait.set()


def test_failures_of_downloads_name_the_repository(fake: FakeHub) -> None:
    for error, words in (
        (of_hub(GatedRepoError, "403"), "is gated: accept its terms"),
        (ConnectionError("reset by peer"), "the download stopped: reset by peer"),
    ):
        fake.broken = error
        with pytest.raises(UserError, match=f"'owner/name' on the Hugging Face hub: .*{words}"):
            load_autoencoder("owner/name")
    fake.broken = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        load_autoencoder("owner/name")


def test_subfolder_of_a_repository_is_opened(fake: FakeHub, tmp_path: Path) -> None:
    for place, channels in (("vae", 4), ("other/ema", 2)):
        KLAutoencoder(**SMALL, latent_channels=channels).save_pretrained(tmp_path / "hub/owner/name" / place)
    assert load_autoencoder("hf:owner/name").latent_spec.channels == 4
    assert load_autoencoder("hf:owner/name/other/ema").latent_spec.channels == 2
    assert KLAutoencoder(pretrained="hf:owner/name/other/ema/").latent_spec.channels == 2
    with pytest.raises(UserError, match=r"it has no other/config\.json"):
        load_autoencoder("hf:owner/name/other")
    for wrong in ("hf:name", "hf:owner/name/../x", "hf:"):
        with pytest.raises(UserError, match="cannot be on the Hugging Face hub; give hf:OWNER/NAME or"):
            load_autoencoder(wrong)


def test_only_the_weights_that_are_read_are_downloaded(fake: FakeHub, tmp_path: Path) -> None:
    there, cache = tmp_path / "hub/owner", tmp_path / "cache/owner"
    model = KLAutoencoder(**SMALL)
    model.net.save_pretrained(there / "both/vae")
    model.half().net.save_pretrained(there / "both/vae", variant="fp16")
    model.net.save_pretrained(there / "half/vae", variant="fp16")
    model.net.save_pretrained(there / "shards", variant="fp16", max_shard_size="20KB")
    model.float().net.save_pretrained(there / "shards", max_shard_size="20KB")
    (there / "both/unet").mkdir()
    (there / "both/unet/diffusion_pytorch_model.safetensors").write_bytes(b"large")
    for name, variants in (("both", 1), ("half", 1), ("shards", 0)):
        assert load_autoencoder(f"owner/{name}").latent_spec.channels == 4
        found = [path.name for path in (cache / name).rglob("*.safetensors")]
        assert len(found) > 2 if name == "shards" else len(found) == variants
        assert any("fp16" in name for name in found) == (name == "half")
    fake.raised = ConnectionError("reset by peer")
    for name in ("both", "half", "shards"):
        assert load_autoencoder(f"owner/{name}").latent_spec.channels == 4  # from the cache


def test_single_file_of_a_repository_is_opened(fake: FakeHub, tmp_path: Path) -> None:
    there = tmp_path / "hub/owner/flux"
    model = KLAutoencoder(block_out_channels=(32,), layers_per_block=1, use_quant_conv=False).eval()
    (there / "split_files").mkdir(parents=True)
    save_file(model.net.state_dict(), there / "ae.safetensors")
    save_file(model.net.state_dict(), there / "split_files/ae.safetensors")
    x = torch.rand(1, 3, 16, 16)
    for place in ("ae.safetensors", "split_files/ae.safetensors"):
        found = load_autoencoder(f"hf:owner/flux/{place}")
        assert torch.equal(found.encode(x).mode(), model.encode(x).mode())
    assert KLAutoencoder(pretrained="hf:owner/flux/ae.safetensors").latent_spec.channels == 4
    with pytest.raises(UserError, match=r"does not have vae.safetensors; give a single file of it: hf:owner/flux/ae"):
        load_autoencoder("hf:owner/flux/vae.safetensors")
    with pytest.raises(UserError, match=r"neither config.json nor vae/config.json; give a single file of it: hf:owner"):
        load_autoencoder("hf:owner/flux")


def test_offline_library_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, as the tests run it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and the cache does not have it"):
        load_autoencoder("owner/no-such-model")


@pytest.mark.parametrize(
    "name",
    ["runs/kl8", "./runs", "owner/photo.PNG", "owner/latents.parquet", "owner/name@best", "owner/name/",
     "../x/y", "~/x", "/a/b", "a/b/c", "name", "a/b.safetensors", "a/model.ckpt", "a//b",
     "a b/c", "owner/-x", "ä/b"],
)  # fmt: skip
def test_paths_are_not_looked_up(name: str, fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "runs/kl_f8").mkdir(parents=True)
    assert not is_hub_name(name)
    with pytest.raises(UserError, match=r"no such (model|run)|is not a model"):
        load_autoencoder(name)
    assert fake.asked == []


def test_missing_model_suggests_the_nearest_name(
    fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/kl_f8").mkdir(parents=True)
    for name, words in (("runs/kl_f9", "did you mean runs/kl_f8?"), ("kl-f8c4-smal", "did you mean kl-f8c4-small?"),
                        ("runs/other", "on the Hugging Face hub it would be hf:runs/other"),
                        ("other", "the shipped models are kl-f8c16-small, kl-f8c4-small, vq-f8-small")):  # fmt: skip
        assert main(["export", name, str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "runs/vq_f8").mkdir()
    with pytest.raises(UserError, match="no such model: runs/zzz; runs has kl_f8, vq_f8; the shipped models are kl-f8"):
        load_autoencoder("runs/zzz")
    with pytest.raises(UserError, match=r"no such model: runs/kl_f9; did you mean runs/kl_f8\?"):
        KLAutoencoder(pretrained="runs/kl_f9")
    assert fake.asked == []


def test_images_are_not_looked_up(fake: FakeHub, tmp_path: Path) -> None:
    """A mistyped `evaluate photos/cats` is looked up as a model on this machine only."""
    assert not is_model_folder("owner/name")
    assert main(["evaluate", "photos/cats", "--out", str(tmp_path / "out")]) == 2
    assert fake.asked == []


def test_pickled_file_in_place_of_a_model_suggests_import(fake: FakeHub, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=r"is a pickled checkpoint: expected a safetensors file.*: ldm-ae import"):
        load_autoencoder("vae.safetensors")
