"""Names on the hub: which are looked up, the class that is opened, and every failure under its own name."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder, VQAutoencoder, is_model_folder, load_autoencoder
from ldm_ae.models.loading import hub
from ldm_ae.models.loading.hub import is_hub_name
from ldm_ae.quantizers import FSQ, VQ

SMALL: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


class FakeHub:
    """`snapshot_download` over folders of this machine, with a log of what was asked for."""

    def __init__(self, root: Path):
        self.root, self.asked, self.raised = root, list[str](), None

    def __call__(self, repository: str, *, allow_patterns: list[str]) -> str:
        self.asked.append(repository)
        if self.raised is not None:
            raise self.raised
        there, cached = self.root / "hub" / repository, self.root / "cache" / repository
        for path in sorted(there.rglob("*")):
            name = path.relative_to(there).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cached / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cached / name)
        return str(cached)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", fake)
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
    assert not list((tmp_path / "cache").rglob("*.bin"))  # configurations and safetensors alone
    # Training starts from either by name, and says so of the wrong class.
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
    with pytest.raises(UserError, match="owner/unet holds a UNet2DModel; known are AutoencoderKL"):
        load_autoencoder("owner/unet")
    KLAutoencoder(**SMALL).save_pretrained(there / "pickled")
    (there / "pickled/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights .*pickled weights are not read"):
        load_autoencoder("owner/pickled")


def test_each_hub_failure_has_its_own_message(fake: FakeHub) -> None:
    offline = LocalEntryNotFoundError("Cannot find")
    offline.__cause__ = ConnectionError("[Errno -2] Name or service not known")
    for error, words in (
        (of_hub(RepositoryNotFoundError, "404 Client Error"), "there is no such repository, or it is"),
        (of_hub(GatedRepoError, "403"), "is gated: accept its terms"),
        (of_hub(HfHubHTTPError, "502 Bad Gateway"), "the request failed: .*502"),
        (offline, r"was not reached \(\[Errno -2\] Name or service not known\); check the spelling of the path"),
        (ConnectionError("reset by peer"), "the download broke off: reset by peer"),
        (ValueError("Repo id must be"), "there can be no such name: Repo id must be"),
    ):
        fake.raised = error
        with pytest.raises(UserError, match=words) as caught:
            load_autoencoder("owner/name")
        assert str(caught.value).isprintable()
    fake.raised = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        load_autoencoder("owner/name")


def test_offline_mode_is_named_in_the_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, as the tests run it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing is looked up, because HF_HUB_OFFLINE is set"):
        load_autoencoder("owner/no-such-model")


@pytest.mark.parametrize(
    "name",
    ["runs/kl8", "./runs", "../x/y", "~/x", "/a/b", "a/b/c", "name", "a/b.safetensors", "a/model.ckpt", "a//b", "a b/c",
     "owner/-x", "ä/b"],
)  # fmt: skip
def test_paths_are_not_looked_up(name: str, fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "runs/kl_f8").mkdir(parents=True)
    assert not is_hub_name(name)
    with pytest.raises(UserError, match=r"no such model|is no model"):
        load_autoencoder(name)
    assert fake.asked == []


def test_missing_model_suggests_the_nearest_name(
    fake: FakeHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/kl_f8").mkdir(parents=True)
    for name, words in (("runs/kl_f9", "did you mean runs/kl_f8?"), ("kl-f8c4-smal", "did you mean kl-f8c4-small?"),
                        ("runs/other", "on the Hugging Face hub it would be hf:runs/other"),
                        ("other", "with ldm_ae come kl-f8c4-small")):  # fmt: skip
        assert main(["export", name, str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no such model folder: runs/kl_f9; did you mean runs/kl_f8\?"):
        KLAutoencoder(pretrained="runs/kl_f9")
    assert fake.asked == []


def test_images_are_not_looked_up(fake: FakeHub, tmp_path: Path) -> None:
    """`evaluate photos/cats`, mistyped, asks whether it is a model, on this machine alone."""
    assert not is_model_folder("owner/name")
    assert main(["evaluate", "photos/cats", "--out", str(tmp_path / "out")]) == 2
    assert fake.asked == []


def test_weights_file_in_place_of_a_model_suggests_import(fake: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "vae.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is a file, not a model folder; make one of it: ldm-ae import"):
        load_autoencoder("vae.safetensors")
