"""The code blocks of the README, docs/ and the model cards run, or have options that exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.docs_blocks import BLOCKS, Options, Run
from tests.pictures import smooth_picture

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "checkpoints/*/README.md")
    for path in sorted(ROOT.glob(pattern))
]
_BLOCK = re.compile(r"^( *)```(bash|sh|shell|console|python|py)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LAUNCHER = re.compile(r"torchrun --nproc[-_]per[-_]node \d+ -m ldm_ae\.cli|accelerate launch -m ldm_ae\.cli")


class Block(NamedTuple):
    page: str
    language: str
    code: str

    @property
    def name(self) -> tuple[str, str]:
        return self.page, re.sub(r"(\s+#.*|\s*\\)$", "", self.code.splitlines()[0])


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        indent, language, code = found.groups()
        yield Block(page, language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE))


ALL = [block for page in PAGES for block in blocks(page)]


def cases(kind: type[Run] | type[Options]) -> list[Any]:
    """A parameter for each block that the table treats so."""
    return [
        pytest.param(
            block, how, id=" ".join(block.name)[:80],
            marks=[pytest.mark.slow] if isinstance(how, Run) and how.slow else [],
        )
        for block in ALL if isinstance(how := BLOCKS.get(block.name), kind)
    ]  # fmt: skip


def test_every_block_is_in_the_table() -> None:
    names = [block.name for block in ALL]
    assert len(set(names)) == len(names), "two blocks begin alike"
    assert set(names) == BLOCKS.keys(), "add new blocks to tests/docs_blocks.py, and remove those that are gone"
    assert all(how.reason for how in BLOCKS.values() if not isinstance(how, Run))


def commands(code: str) -> list[list[str]]:
    """Return the commands of a shell block, each as arguments, without launchers and with variables filled in."""
    variables: dict[str, str] = {}
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        arguments = shlex.split(_LAUNCHER.sub("ldm-ae", re.sub(r" \[[^\]]*\]", "", line)), comments=True)
        if assigned := re.fullmatch(r"(\w+)=(.*)", arguments[0]) if arguments else None:
            variables[assigned[1]] = assigned[2]
        elif arguments:
            found.append(arguments)
    return found


def run_command(arguments: list[str]) -> None:
    """Run a command of ours in this process, and assert that it ends well."""
    from ldm_ae.cli import main

    status: object
    try:
        if arguments[0] == "ldm-ae":
            status = main(arguments[1:])
        else:
            assert arguments[0] == "python", f"not a command of ours: {arguments}"
            script = ROOT / arguments[1]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [str(script), *arguments[2:]])
                patch.syspath_prepend(str(script.parent))
                status = runpy.run_path(str(script), run_name="__main__") and 0
    except SystemExit as end:
        status = end.code
    assert status in (0, None), arguments


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the placeholders name, see tests/docs_blocks.py."""
    import torch

    from ldm_ae.data import ImageTransform, open_source
    from ldm_ae.latents import encode_images
    from ldm_ae.latents.conversion.convert import convert_store
    from ldm_ae.models import KLAutoencoder, VQAutoencoder
    from ldm_ae.priors import GatedPixelCNN, save_prior
    from ldm_ae.quantizers import VQ

    folder = tmp_path_factory.mktemp("docs")
    for name in ("IMAGES", "OTHER_IMAGES", "PHOTOS"):
        for i in range(4):
            path = folder / name / ("cats" if i % 2 else "dogs") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            smooth_picture(i, 40 + i, 44).save(path)
    smooth_picture(9, 70, 64).save(folder / "photo.jpg")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }  # fmt: skip
    model = KLAutoencoder(**sizes)
    model.save_pretrained(folder / "MODEL")
    VQAutoencoder(quantizer=VQ(16, 4), **sizes).save_pretrained(folder / "CODES")
    (folder / "SAVED_PRIOR").mkdir()
    prior = GatedPixelCNN(shape=(2, 2), codebook_size=16, width=8, depth=1)
    save_prior(prior, folder / "SAVED_PRIOR", model_hash="0" * 64)
    for name in ("MODEL", "CODES"):  # the size that commands take by default
        config = folder / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 32}))
    encode_images(
        model, open_source(folder / "IMAGES"), folder / "STORE", transform=ImageTransform(size=32), device="cpu"
    )
    convert_store(folder / "STORE", folder / "THEIRS", "lightningdit")
    convert_store(folder / "STORE", folder / "FOLDED", "mar", fold=0.2325)
    for name in ("checkpoints", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def folder(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of one block, with links to the material."""
    for path in material.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("block", "how"), cases(Run))
def test_block_runs(block: Block, how: Run, folder: Path) -> None:
    code = block.code
    for old, new in how.replace.items():
        assert old in code, f"the block has no {old!r} to replace"
        code = code.replace(old, new)
    if block.language == "python":
        exec(compile(code, block.page, "exec"), namespace(folder))
    else:
        for arguments in commands(code):
            run_command(arguments)
    assert [name for name in how.makes if not (folder / name).exists()] == []


def namespace(folder: Path) -> dict[str, Any]:
    """What the Python blocks take as given."""
    import diffusers
    import torch

    import ldm_ae
    from ldm_ae.models import load_autoencoder

    return {
        "AutoencoderKL": diffusers.AutoencoderKL, "diffusers": diffusers, "pipeline": SimpleNamespace(),
        "model": load_autoencoder(folder / "CODES"), "images": torch.zeros(1, 3, 8, 8),
        "samples": torch.zeros(1, 4, 2, 2),
        "ldm_ae": ldm_ae, "batches": [torch.rand(2, 3, 32, 32) * 2 - 1],
        "rank": 0, "world_size": 1, "epochs": 1,
    }  # fmt: skip


@cache
def help_of(*command: str) -> str:
    """What a command prints for --help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_command([*command, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize(("block", "how"), cases(Options))
def test_block_has_options_that_exist(block: Block, how: Options, folder: Path) -> None:
    found = commands(block.code)
    assert found
    for arguments in found:
        if arguments[:2] == ["ldm-ae", "train"]:  # its help has no options of the classes that a recipe names
            run_command([*arguments, "--print_config"])
            continue
        text = help_of(*arguments[:2])
        for option in (argument for argument in arguments[2:] if argument.startswith("--")):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", text), f"{arguments[:2]} has no {option}"
