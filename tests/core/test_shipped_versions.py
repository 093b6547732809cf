"""Versions of shipped models by name and by hash, in a table and an installation of the test."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from ldm_ae.core import resources, shipped
from ldm_ae.core.errors import UserError
from ldm_ae.models.loading.places import maker_place, model_place


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the second of two versions of kl-f8c4-small, and return its folder; the working folder is empty."""
    folder = tmp_path / "package" / "kl-f8c4-small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"new")
    old = replace(shipped.VERSIONS[0], version=1, weights_sha256=hashlib.sha256(b"old").hexdigest())
    new = replace(old, version=2, model_hash="2" * 64, weights_sha256=hashlib.sha256(b"new").hexdigest(), commit=None)
    monkeypatch.setattr(shipped, "VERSIONS", (old, new))
    monkeypatch.setattr(resources, "_places", lambda *_: (folder.parent,))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_installed_version_is_the_folder_of_the_name(installed: Path) -> None:
    assert model_place("kl-f8c4-small") == model_place("kl-f8c4-small@2") == installed


def test_other_version_names_the_command_that_gets_it(installed: Path) -> None:
    with pytest.raises(UserError) as caught:
        model_place("kl-f8c4-small@1")
    commit = (shipped.VERSIONS[0].commit or "")[:12]
    assert str(caught.value) == (
        "no such model: kl-f8c4-small@1 is not in this installation. In a clone of the project, `git archive "
        f"--prefix=kl-f8c4-small@1/ {commit}:checkpoints/kl-f8c4-small | tar -x` writes its folder; give the folder's "
        "path as MODEL"
    )
    # The folder that the command writes is found by the same name, as is a checkpoint of a run with the model's name.
    folder = Path("kl-f8c4-small@1")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert model_place("kl-f8c4-small@1") == folder
    Path("kl-f8c4-small").mkdir()
    with pytest.raises(UserError, match="is not a run"):
        model_place("kl-f8c4-small@2")


def test_version_whose_weights_were_changed_says_so(installed: Path) -> None:
    (installed / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="its folder kl-f8c4-small was changed; install ldm_ae again"):
        model_place("kl-f8c4-small@2")


def test_names_of_shipped_models_have_versions_or_not(installed: Path) -> None:
    names = ("kl-f8c4-small", "kl-f8c4-small@1", "kl-f8c4-small@3", "vq-f8-small@1", "other")
    assert [shipped.is_shipped_name(name) for name in names] == [True, True, False, False, False]


def test_unknown_versions_are_refused_with_those_there_are(installed: Path) -> None:
    for name in ("3", "best", ""):
        with pytest.raises(UserError, match=rf"has no version '{name}'; there are 1, 2 \(installed\)"):
            model_place(f"kl-f8c4-small@{name}")
    with pytest.raises(UserError, match="no such run"):
        model_place("other@1")


def test_error_of_another_model_names_the_version_that_made_it(installed: Path) -> None:
    old, new = shipped.VERSIONS
    assert str(shipped.other_model("S was made by", new.model_hash, "a" * 64)) == (
        "S was made by kl-f8c4-small@2, this model has the hash aaaaaaaaaaaa; give kl-f8c4-small@2 as MODEL"
    )
    assert old.advice in str(shipped.other_model("S was made by", old.model_hash, "a" * 64))
    assert str(shipped.other_model("S was made by", "b" * 64, "a" * 64)) == (
        "S was made by another model (hash bbbbbbbbbbbb, this one's is aaaaaaaaaaaa); give that model"
    )


def test_maker_is_found_by_its_hash_or_the_error_says_which_it_is(installed: Path) -> None:
    old, new = shipped.VERSIONS
    assert maker_place("S was made by", new.model_hash) == installed
    with pytest.raises(UserError) as caught:
        maker_place("S was made by", old.model_hash)
    assert str(caught.value) == f"S was made by kl-f8c4-small@1; {old.advice}"
    with pytest.raises(UserError, match=r"S was made by a model that does not ship with ldm_ae \(hash cccccccccccc\)"):
        maker_place("S was made by", "c" * 64)
