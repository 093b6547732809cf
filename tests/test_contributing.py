"""CONTRIBUTING's examples of *to add X, write this file* are installed as plugins and used by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from ldm_ae.images.pixels import PixelSpec
from ldm_ae.latents import LatentStore
from tests.golden.inputs import write_images
from tests.plugins import write_plugin
from tests.processes import CLI, run_script

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES: dict[str, str] = dict(re.findall(r"<!-- example: ([\w ]+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))
RECIPE = EXAMPLES["recipe"]
PLUGINS = {kind: text for kind, text in EXAMPLES.items() if kind != "recipe"}

# What a test below uses. An example of another kind needs a use of its own here.
USED = {
    "discriminator", "aid of a discriminator", "quantizer", "regularizer", "reconstruction loss", "perceptual loss",
    "adversarial loss", "prior", "feature network", "source", "format", "network class", "layout", "metric", "command",
    "recipe", "view",
}  # fmt: skip


@dataclass(frozen=True)
class Installed:
    """A run, a store and converted latents that the examples took part in."""

    folder: Path

    def run(self, script: Path, *arguments: str | Path) -> tuple[int, str]:
        """Run a script with the plugins installed, and return its exit status and both its outputs."""
        log = self.folder / "log"
        log.unlink(missing_ok=True)
        status = run_script(script, [str(argument) for argument in arguments], log, packages=self.folder / "site")
        return status, log.read_text()

    def ldm_ae(self, *arguments: str | Path) -> str:
        """Run a command that must succeed, and return its output."""
        status, output = self.run(CLI, *arguments)
        assert status == 0, output
        return output


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Every example as an installed package, and images with a list of them."""
    folder = tmp_path_factory.mktemp("contributing")
    for kind, text in PLUGINS.items():
        write_plugin(folder / "site", f"example_{kind.replace(' ', '_')}", text)
    images = sorted(write_images(folder / "images").rglob("*.bmp"))
    (folder / "list.txt").write_text("".join(f"{path}\n" for path in images))
    (folder / "recipe.yaml").write_text(RECIPE)
    return Installed(folder)


@pytest.fixture(scope="module")
def trained(installed: Installed) -> Path:
    """A run of two steps by the recipe, scaled down, from the listed images."""
    out = installed.folder / "run"
    installed.ldm_ae(
        "train", "--config", installed.folder / "recipe.yaml", "--out", out,
        "--data.train", f"list:{installed.folder / 'list.txt'}", "--data.resolution", "32", "--data.workers", "0",
        "--data.validation_images", "2", "--model.init_args.block_out_channels", "[8, 16]",
        "--model.init_args.layers_per_block", "1", "--model.init_args.norm_num_groups", "4",
        "--training.max_steps", "2", "--training.batch_size", "2", "--training.log_every", "1",
        "--training.checkpoint_every", "2", "--training.sample_every", "2", "--training.validate_every", "2",
        "--training.precision", "fp32", "--training.trackers", "[]",
    )  # fmt: skip
    return out


def test_every_example_is_tested() -> None:
    assert set(EXAMPLES) == USED
    folders = re.findall(r"^\| an? [\w ]+ \| `(?:ldm_ae|configs)/[\w/]*NAME\.\w+` \|", PAGE, re.MULTILINE)
    assert len(folders) == len(EXAMPLES), "the table has a row for each example"


def test_plugin_view_gives_rgb_images() -> None:
    found: dict[str, Any] = {}
    exec(EXAMPLES["view"], found)
    pixels = PixelSpec(channels=2, meaning="channels")
    shown = found["ChannelMean"]().of(pixels).single(torch.tensor([0.5, -0.1]).view(1, 2, 1, 1))
    torch.testing.assert_close(shown.flatten(), torch.full((3,), 0.2))


@pytest.mark.slow
def test_recipe_trains_with_plugin_classes(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["discriminator"]["class_path"] == "example_discriminator.PixelDiscriminator"
    assert config["discriminator_aids"] == [{"class_path": "example_aid_of_a_discriminator.RandomMirror"}]
    assert config["model"]["init_args"]["quantizer"]["class_path"] == "example_quantizer.TernaryFSQ"
    assert config["objective"]["reconstruction"] == {
        "class_path": "example_reconstruction_loss.Huber", "init_args": {"delta": 0.05},
    }  # fmt: skip
    assert config["objective"]["view"]["class_path"] == "example_view.ChannelMean"
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "latent_norm_loss" in line]
    assert steps
    assert all(line["latent_norm_loss"] > 0 and np.isfinite(line["discriminator_loss"]) for line in steps)


@pytest.mark.slow
def test_latents_of_a_plugin_quantizer_are_written_in_a_plugin_format(installed: Installed, trained: Path) -> None:
    store, out = installed.folder / "store", installed.folder / "npy"
    listed = f"list:{installed.folder / 'list.txt'}"
    installed.ldm_ae(
        "encode", trained, listed, store, "--size", "32", "--workers", "0", "--no-flips", "--device", "cpu"
    )
    assert "plain-npy" in installed.ldm_ae("convert", "--help")
    installed.ldm_ae("convert", store, out, "--format", "plain-npy")
    files = sorted(out.glob("*.npy"))
    assert len(files) == len(LatentStore(store).good()) == 12
    latents = np.stack([np.load(file) for file in files])
    assert latents.shape == (12, 6, 16, 16)
    assert set(np.unique(latents)) <= {-1.0, 0.0, 1.0}


@pytest.mark.slow
def test_plugin_network_class_encodes_as_its_network_does(installed: Installed) -> None:
    torch.manual_seed(0)
    down, up = nn.Conv2d(3, 8, 4, stride=4), nn.ConvTranspose2d(8, 3, 4, stride=4)
    model, store = installed.folder / "patches", installed.folder / "patches-store"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"_class_name": "Patches", "width": 8, "side": 4}))
    state = {f"{part}.{key}": value for part, layer in (("down", down), ("up", up)) for key, value in
             layer.state_dict().items()}  # fmt: skip
    save_file(state, model / "diffusion_pytorch_model.safetensors")
    image = installed.folder / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(image)
    installed.ldm_ae("encode", model, image, store, "--size", "32", "--workers", "0", "--no-flips", "--device", "cpu")
    (file,) = store.glob("*/latents_*.safetensors")
    pixel_values = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        right = down(pixel_values)
    assert torch.allclose(load_file(file)["latents"], right, atol=1e-5)


@pytest.mark.slow
def test_plugin_layout_opens_a_single_file(installed: Installed) -> None:
    network = AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4)
    state = {key.replace("oder.", ".", 1): value for key, value in network.state_dict().items()}
    assert "enc.layers.0.weight" in state
    save_file(state, installed.folder / "short.safetensors")
    found = json.loads(installed.ldm_ae("inspect", installed.folder / "short.safetensors", "--json"))
    assert (found["layout"], found["class"]) == ("the keys of enc and dec", "AutoencoderTiny")
    assert found["problems"] == []


@pytest.mark.slow
def test_plugin_prior_is_saved_and_loaded_by_its_name(installed: Installed) -> None:
    folder = installed.folder / "prior"
    folder.mkdir()
    code = (
        "import sys, torch; from ldm_ae.priors import PRIORS, load_prior, save_prior\n"
        "prior = PRIORS['IndependentCodes'](codebook_size=4, shape=(2, 3))\n"
        "save_prior(prior, sys.argv[1], model_hash='x')\n"
        "loaded = load_prior(sys.argv[1]).prior\n"
        "print(type(loaded).__name__, loaded.bits(torch.zeros(1, 2, 3, dtype=torch.int64)).tolist(), "
        "tuple(loaded.sample(5).shape))\n"
    )
    script = installed.folder / "use_prior.py"
    script.write_text(code)
    status, output = installed.run(script, folder)
    assert status == 0, output
    assert output.strip() == "IndependentCodes [12.0] (5, 2, 3)"  # log2(4) bits for each of 6 codes


@pytest.mark.slow
def test_plugin_feature_network_is_found_by_its_name(installed: Installed) -> None:
    script = installed.folder / "use_features.py"
    script.write_text(
        "import torch; from ldm_ae.features import FEATURE_NETWORKS\n"
        "network = FEATURE_NETWORKS['HaarWavelets'](levels=2)\n"
        "maps = network(torch.full((1, 3, 30, 33), 0.5))\n"
        "print([tuple(features.shape) for features in maps], float(maps[1].abs().max()) < 1e-5)\n"
    )
    status, output = installed.run(script)
    assert status == 0, output
    assert output.strip() == "[(1, 9, 16, 16), (1, 9, 8, 8)] True"  # flat images have no differences


@pytest.mark.slow
def test_unknown_name_lists_names_of_plugins(installed: Installed) -> None:
    status, output = installed.run(
        CLI, "train", "--config", installed.folder / "recipe.yaml", "--out", installed.folder / "none",
        "--data.train", "x", "--discriminator", "PixelDiscrimnator",
    )  # fmt: skip
    assert status == 2
    named = output.partition("did you mean PixelDiscriminator? There are ")[2].splitlines()[0].split(", ")
    assert {"PatchDiscriminator", "PixelDiscriminator"} <= {*named}


@pytest.mark.slow
def test_plugin_metric_scores_a_model(installed: Installed, trained: Path) -> None:
    out, listed = installed.folder / "scores", f"list:{installed.folder / 'list.txt'}"
    installed.ldm_ae(
        "evaluate",
        trained,
        listed,
        "--size",
        "32",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--out",
        out,
        "--metrics",
        "mae",
    )
    assert 0 < json.loads((out / "metrics.json").read_text())["scores"]["mae"] < 2
    assert "Mean absolute difference of pixel values" in (out / "report.html").read_text()


@pytest.mark.slow
def test_plugin_command_is_listed_and_runs(installed: Installed) -> None:
    assert re.search(r"^ +count +count the images of a source$", installed.ldm_ae("--help"), re.MULTILINE)
    words = ["count", f"list:{installed.folder / 'list.txt'}"]
    assert installed.ldm_ae(*words) == "12 images\n"
    path = os.pathsep.join([str(installed.folder / "site"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(  # by an interpreter of its own, as users do
        [sys.executable, "-m", "ldm_ae.cli", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "12 images\n"), done.stderr
