"""Model cards: the code in them runs, the metadata is the hub's, and names in configurations stay names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_diffusers
from ldm_ae.interop.card import Card, Measured, Score, Trained, check_licence, render_card, write_card
from ldm_ae.interop.card.markup import code, escaped
from ldm_ae.interop.card.recipe import hub_dataset, hub_model, public_name, recipe_rows, without_private_paths
from ldm_ae.models import Autoencoder, KLAutoencoder, load_autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.training.configuration.parsing import parse_config
from tests.models.examples import skip_if_missing
from tests.pictures import smooth_picture

pytestmark = pytest.mark.slow

PROTOCOL: dict[str, Any] = {
    "images": {"source": "x", "count": 3, "size": "32x32", "keys_sha256": "ab" * 32, "rejected": {"a": "b"},
               "transform": {"version": 1, "size": [32, 32], "resize": None, "crop": "center", "flip": False}},
    "model": {"sha256": "cd" * 32}, "reconstruction": "decoded from the mode", "precision": "fp32",
    "memory_layout": "channels_last", "device": "cpu", "frechet_features": None,
    "baseline": {"method": "bicubic", "thumbnail_size": "4x4"}, "versions": {"ldm_ae": "0.1.0", "lpips": None},
}  # fmt: skip
SCORES = [
    Score(key="psnr", label="PSNR, dB", value=23.456789, direction="higher", explanation="Error.", baseline=22.0),
    Score(key="kl_bits_per_pixel", label="KL rate", value=1.5),
    Score(key="frechet_efficientnet_lite0", label="Fréchet distance, efficientnet_lite0", value=200.0,
          direction="lower", caution="over 3 images, and reliable from 2,000 on"),
]  # fmt: skip
CONFIG: dict[str, Any] = {
    "out": "/home/me/runs/mine",
    "model": {"class_path": "ldm_ae.models.KLAutoencoder", "init_args": {"pretrained": None}},
    "data": {"train": "hf:owner/photos:train", "resolution": 32, "crop": "random", "flip": True},
    "objective": {"reconstruction": {"class_path": "ldm_ae.losses.L1"}, "perceptual_weight": 0.5,
                  "perceptual": {"class_path": "ldm_ae.losses.LPIPS", "init_args": {"net": "vgg"}},
                  "regularization_weights": {"kl": 1e-6}, "reduction": "mean"},
    "optimizer": {"class_path": "torch.optim.AdamW", "learning_rate": 1e-4, "options": {"betas": [0.5, 0.9]}},
    "training": {"max_steps": 100, "trainable": ["*"], "precision": "auto"},
}  # fmt: skip


def measured(**changes: Any) -> Measured:
    found = Measured(scores=SCORES, images=3, source="photos", dataset=None, protocol=PROTOCOL)
    return replace(found, **changes)


def trained(**changes: Any) -> Trained:
    config, removed = without_private_paths(CONFIG)
    found = Trained(
        config=config, removed=removed, source="hf:owner/photos:train", dataset="owner/photos", step=60,
        identity={"data": "308 images, names and sizes 00", "global_batch": 16},
        environment={"numerics": {"precision": "bf16"}, "versions": {"torch": "2.14.1"}, "device": "cpu: EPYC"},
    )  # fmt: skip
    return replace(found, **changes)


@pytest.fixture
def card(tiny_model: KLAutoencoder) -> Card:
    tiny_model.set_scaling(scaling_factor=0.25)
    tiny_model.set_sample_size(32)
    return Card(repository="owner/name", model=tiny_model.eval(), licence="mit")


@pytest.fixture(params=[*AUTOENCODERS, "PatchLinear"])
def folder(request: pytest.FixtureRequest, patch_linear: None, tmp_path: Path) -> Path:
    """An exported model of each class, with a card."""
    skip_if_missing(request.param)
    model = AUTOENCODERS[request.param].example(request.param)
    factor, only = model.latent_spec.image_multiple, model.latent_spec.image_size
    model.set_sample_size(only or max(32 // factor, 1) * factor)
    export_diffusers(model, tmp_path / "model")
    write_card(Card(repository="owner/name", model=load_autoencoder(tmp_path / "model")), tmp_path / "model")
    return tmp_path / "model"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_code_of_the_card_runs_on_the_written_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    smooth_picture(0, 50, 40).save("photo.jpg")
    text = (folder / "README.md").read_text(encoding="utf-8")
    *theirs, ours = python_blocks(text)
    names: dict[str, Any] = {}
    exec(ours.replace("hf:owner/name", str(folder)), names)
    model: Autoencoder = names["model"]
    (shape,) = re.findall(r"# (\(1, [\d, ]+\)), unscaled", ours)
    assert str(tuple(names["latents"].shape)) == shape
    torch.testing.assert_close(model.unscale(names["scaled_latents"]), names["latents"])
    assert names["image"].size == (model.sample_size, model.sample_size)
    assert len(theirs) == (f"from diffusers import {type(model.net).__name__}" in text)
    for block in theirs:
        exec(block.replace("owner/name", str(folder)), names)
        assert type(names["vae"]).__name__ == type(model.net).__name__
        if "latents =" in block:  # the same as ours, for the same images; diffusers quantizes when it decodes
            mine = model.encode(names["pixel_values"]).mode()
            if model.codebook is None:
                torch.testing.assert_close(names["latents"], mine, atol=1e-5, rtol=1e-5)
            assert f"# {tuple(mine.shape)}, {'unscaled' if model.codebook is None else 'which'}" in block
            torch.testing.assert_close(names["reconstructions"], model.decode(mine), atol=1e-4, rtol=1e-4)


def test_metadata_has_the_keys_of_the_hub_and_its_library_reads_it(card: Card) -> None:
    text = render_card(replace(card, base_model="owner/base", trained=trained(), measured=measured()))
    found = ModelCard(text)
    assert found.data.license == "mit"
    assert found.data.library_name == "diffusers"
    assert found.data.pipeline_tag == "image-to-image"
    assert found.data.tags == ["autoencoder", "vae", "latent-diffusion", "ldm_ae"]
    assert found.data.base_model == "owner/base"
    assert found.data.datasets == ["owner/photos"]
    (result,) = found.data.eval_results  # a rate has no better direction, a distance over 3 images is not a result
    assert (result.metric_type, result.metric_name, result.metric_value) == ("psnr", "PSNR, dB", 23.456789)
    assert result.dataset_name == "photos, 3 images of 32x32 pixels"
    assert found.data.model_name == "name"
    minimal = yaml.safe_load(render_card(replace(card, licence=None)).split("---\n")[1])
    assert minimal.keys() == {"library_name", "pipeline_tag", "tags"}


def test_scores_keep_their_names_and_a_distance_over_few_images_its_caution(card: Card) -> None:
    text = render_card(replace(card, measured=measured()))
    assert "| PSNR, dB ↑ (`psnr`) | 23.46 | 22.00 |" in text
    assert "| KL rate (`kl_bits_per_pixel`) | 1.5000 |  |" in text
    distance = (
        r"| Fréchet distance, efficientnet\_lite0 ↓ (`frechet_efficientnet_lite0`), *over 3 images, and reliable "
    )
    assert f"{distance}from 2,000 on* | *200.00* |  |" in text
    assert "rfid" not in text.lower()
    for line in ("| Images | 3 of `photos`, 32x32 pixels |", "| Images: size | 32×32 |", "| Images: crop | center |",
                 "| Images that were not readable | 1 |", r"| Software | ldm\_ae 0.1.0 |",
                 "- The scores are over 3 images: small differences"):  # fmt: skip
        assert line in text
    assert "Images: flip" not in text
    assert "No scores were measured." in render_card(card)


def test_recipe_and_limits_come_from_the_run(card: Card) -> None:
    text = render_card(replace(card, trained=trained()))
    for line in (
        "| Images | 308 images of `hf:owner/photos:train`, random crops of 32×32 pixels, mirrored at random |",
        "| Objective | `L1` + 0.5 × `LPIPS(net=vgg)` + 1e-06 × `kl`; reduction `mean` |",
        r"| Optimizer | `AdamW`, learning rate 0.0001, betas \[0.5, 0.9\] |",
        "| Images of a step | 16 |", "| Steps | 60 of 100 |", "| Precision | `bf16` |", "| Software | torch 2.14.1 |",
        "ldm-ae train --config training/config.yaml --out VALUE",
        "- These weights are from step 60 of 100 planned steps.", "- It was trained on 308 images: content",
        "- It was trained on images of 32×32 pixels.",
    ):  # fmt: skip
        assert line in text
    assert "Discriminator" not in text
    assert "Started from" not in text
    assert "/home" not in text
    config, removed = without_private_paths({"model": {"init_args": {"pretrained": "/home/me/first"}}})
    text = render_card(replace(card, trained=trained(config=config, removed=removed)))
    assert "| Started from | a model that is not public |" in text


def scaling_of(card: Card, **scale: Any) -> str:
    card.model.set_scaling(**scale)
    return render_card(card).split("## Scaling\n\n")[1].split("\n\n##")[0]


def test_recipe_names_every_loss_of_a_sum_and_its_weights() -> None:
    features = {
        "class_path": "ldm_ae.features.DINOv2",
        "init_args": {"weights": "facebook/dinov2-small", "layers": None},
    }
    losses = [
        {"class_path": "ldm_ae.losses.SSIMDistance"},
        {"class_path": "ldm_ae.losses.DeepFeatures", "init_args": {"features": features, "tile": 256}},
    ]
    loss = {"class_path": "ldm_ae.losses.WeightedSum", "init_args": {"losses": losses, "weights": [0.1, 500.0]}}
    config = CONFIG | {"objective": CONFIG["objective"] | {"perceptual": loss, "perceptual_weight": 1.0}}
    identity = "0.1 x ssim_distance, 500 x dinov2_small_features of facebook/dinov2-small (sha256 0123)"
    rows = dict(recipe_rows(trained(config=config, environment={"perceptual": identity})))
    deep = "DeepFeatures(features=DINOv2(weights=facebook/dinov2-small), tile=256)"
    assert f"1.0 × `WeightedSum(losses=[SSIMDistance, {deep}], weights=[0.1, 500.0])`" in rows["Objective"]
    assert "sha256 0123" in rows["Perceptual networks"]


def test_phases_of_a_run_are_rows_with_what_each_sets(card: Card) -> None:
    phases = [
        {"training.max_steps": 70},
        {"training.max_steps": 30, "data.resolution": 64, "training.trainable": ["decoder.*"],
         "discriminator": {"class_path": "ldm_ae.discriminators.PatchDiscriminator", "init_args": {"ndf": 8}}},
    ]  # fmt: skip
    text = render_card(replace(card, trained=trained(phases=phases)))
    assert "| Steps | 60 of 100 |" in text
    assert "| Phase 1 of 2 | 70 steps |" in text
    assert (
        '| Phase 2 of 2 | 30 steps; `data.resolution` `64`; `training.trainable` `["decoder.*"]`; `discriminator` '
        "`PatchDiscriminator(ndf=8)` |"
    ) in text
    assert "It was trained on images of 32×32, then 64×64 pixels." in text
    assert "These weights are from step 60 of 100 planned steps." in text
    timed = [{"training.max_steps": 70, "training.max_minutes": 1.5}, {"training.max_steps": 30}]
    text = render_card(replace(card, trained=trained(phases=timed)))
    assert "| Steps | 60 |" in text  # Nobody planned a number.
    assert "| Phase 1 of 2 | at most 70 steps; `training.max_minutes` `1.5` |" in text
    assert "planned steps" not in text
    _, removed = without_private_paths({"phases": [{}, {"data": {"train": "/home/me/images"}}]})
    assert removed == ["phases.2.data.train"]


def test_scaling_is_stated_as_the_pipelines_apply_it(card: Card) -> None:
    assert "`latents * 0.25`; before decoding, `latents = scaled_latents / 0.25`" in scaling_of(
        card, scaling_factor=0.25
    )
    shifted = scaling_of(card, scaling_factor=0.5, shift_factor=0.125)
    assert "sees `(latents - 0.125) * 0.5`; before decoding, `latents = scaled_latents / 0.5 + 0.125`" in shifted
    assert "Stable Diffusion and SDXL ignore the shift" in shifted
    vectors = {"latents_mean": (1.0, 2.0, 3.0, 4.0), "latents_std": (2.0,) * 4}
    text = scaling_of(card, scaling_factor=1.0, **vectors)
    assert "sees `(latents - latents_mean) / latents_std`, channel" in text
    assert "`latents_mean` is `[1, 2, 3, 4]`" in text
    assert "latents_std * 0.5`" in scaling_of(card, scaling_factor=0.5, **vectors)
    assert "The scale of the latents was not measured" in scaling_of(card, scaling_factor=1.0)
    # The formulas are those of the model.
    latents = torch.randn(1, 4, 2, 2)
    card.model.set_scaling(scaling_factor=0.5, shift_factor=0.125)
    torch.testing.assert_close(card.model.scale(latents), (latents - 0.125) * 0.5)


HOSTILE = [
    "a\n---\nlicense: evil", "x | y", "[click](https://evil.example)", "<script>alert(1)</script>", "`code` ``more``",
    "![i](http://evil.example/a.png)", "# title", "key: {a: b}", "www.evil.example", "- item\x1b[31m", "*b* _i_ ~s~",
    "https://evil.example", "@someone", "$x$", "&lt;", "1. one", "\\",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_names_never_act_as_markup_or_metadata(name: str, card: Card) -> None:
    from markdown_it import MarkdownIt

    config = {"data": {"train": name, "crop": name, "resolution": 32, "resize": name}, "seed": name,
              "objective": {"reconstruction": {"class_path": f"m.{name}", "init_args": {name: name}}},
              "training": {"trainable": [name]}, "model": {"init_args": {"pretrained": name}}}  # fmt: skip
    protocol = {**PROTOCOL, "device": name, "reconstruction": name, "versions": {name: name},
                "images": {**PROTOCOL["images"], "size": name, "transform": {name: name}}}  # fmt: skip
    score = Score(key=name, label=name, value=1.0, direction="higher", explanation=name, caution="")
    hostile = replace(
        card, trained=trained(config=config, source=name, removed=[name], dataset=None, environment={"device": name}),
        measured=measured(source=name, protocol=protocol, scores=[score], activations=name),
    )  # fmt: skip
    harmless = replace(
        card, trained=trained(config=_renamed(config, name), source="w", removed=["w"], environment={"device": "w"}),
        measured=measured(source="w", protocol=_renamed(protocol, name), activations="w",
                          scores=[replace(score, key="w", label="w", explanation="w")]),
    )  # fmt: skip
    text = render_card(hostile)
    front, body = text.split("\n---\n", 1)
    found = yaml.safe_load(front)
    assert found["license"] == "mit"
    assert found.keys() == {"license", "library_name", "pipeline_tag", "tags", "model-index"}
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == 1.0
    assert "\x1b" not in text
    # The same elements as with the name `w`: names add no link, image, HTML, heading, cell or emphasis.
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    assert _elements(parser, body) == _elements(parser, render_card(harmless).split("\n---\n", 1)[1])


def _renamed(tree: Any, name: str) -> Any:
    """Replace a name in keys and values by `w`."""
    if isinstance(tree, dict):
        return {("w" if key == name else key): _renamed(value, name) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_renamed(item, name) for item in tree]
    return tree.replace(name, "w") if isinstance(tree, str) else tree


def _elements(parser: Any, text: str) -> list[str]:
    found = []
    for token in parser.parse(text):
        # Text and characters that were escaped are both text.
        found += [child.type for child in token.children or [] if child.type not in ("text", "text_special")]
        found.append(token.type)
    return found


def test_code_spans_and_escapes_show_the_name() -> None:
    from markdown_it import MarkdownIt

    render = MarkdownIt("commonmark").renderInline
    for name in ("a`b", "``", "a_b*c", "<i>", "[x](y)", "\\n", "a&amp;b", "100. x", "-- x"):
        assert _plain(render(escaped(name))) == name
        assert _plain(render(code(name))) == name
    assert code("") == "`(empty)`"
    assert len(escaped("x" * 1000)) == 300


def _plain(html: str) -> str:
    from html import unescape

    return unescape(re.sub(r"</?code>", "", html))


PRIVATE = ("/home/me/photos", "~/photos", "C:\\photos", "D:/photos", "\\\\server\\photos", "tars:/data/a.tar",
           "folder:~/x", "../secret/photos", "a/../../b", "x.tar,/data/b.tar", "hf:/home/me/saved")  # fmt: skip


@pytest.mark.parametrize("path", PRIVATE)
def test_private_paths_are_removed_wherever_they_stand(path: str) -> None:
    config = {"out": path, "data": {"train": path, "size": 3}, "list": ["x", path], "model": {"a": {"b": path}}}
    clean, removed = without_private_paths(config)
    assert path not in yaml.safe_dump(clean)
    assert clean == {"out": "???", "data": {"train": "???", "size": 3}, "list": ["x", "???"],
                     "model": {"a": {"b": "???"}}}  # fmt: skip
    assert removed == ["out", "data.train", "list", "model.a.b"]
    assert "/" not in public_name(path)


@pytest.mark.parametrize(
    "value", ["runs/mine", "hf:owner/name", "photos:train", "encoder.*", "ldm_ae.losses.L1", "data/a.tar", "a..b", "?"]
)
def test_other_values_are_kept(value: str) -> None:
    assert without_private_paths({"key": value}) == ({"key": value}, [])


@pytest.mark.slow
def test_recipe_of_the_card_is_a_configuration_that_asks_for_the_removed_paths(card: Card, tmp_path: Path) -> None:
    from ldm_ae.core.resources import recipe

    config = yaml.safe_load(recipe("kl_f8.yaml").read_text(encoding="utf-8"))
    config["data"]["train"], config["out"] = "/data/photos", "/runs/x"
    clean, removed = without_private_paths(config)
    write_card(replace(card, trained=trained(config=clean, removed=removed)), tmp_path)
    path = tmp_path / "training" / "config.yaml"
    assert "# Paths of the machine are removed (???); give your own:" in path.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"data.train is not set, and the recipe has no value for it; add --data.train"):
        parse_config(["--config", str(path), "--out", "o"])
    parsed = parse_config(["--config", str(path), "--out", "o", "--data.train", "d"])
    assert (parsed.data.train, parsed.training.max_steps) == ("d", config["training"]["max_steps"])


def test_pictures_are_written_beside_the_card(card: Card, tmp_path: Path) -> None:
    grid = Image.new("RGB", (8, 8), (1, 2, 3))
    write_card(replace(card, pictures=2, pictured="photos", error_gain=4.0), tmp_path, pictures=grid)
    with Image.open(tmp_path / "pictures.png") as image:
        assert image.getpixel((0, 0)) == (1, 2, 3)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "![Originals, reconstructions, errors](pictures.png)" in text
    assert "error ×4. The first 2 images of `photos`" in text


def test_names_on_the_hub_are_told_from_local_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_dataset("hf:owner/photos:train") == "owner/photos"
    assert hub_dataset("hf:cifar10") == "cifar10"
    assert hub_model("hf:owner/name/vae") == "owner/name"
    assert hub_model("owner/name", local="runs/x") == "owner/name"
    assert hub_model("runs/first", local="runs/x") is None
    for other in ("hf:/home/x", "hf:../x", "photos", None, 3):
        assert hub_dataset(other) is None
    for other in (None, "/a/b", "kl-f8c4-small", "runs/a/model", "hf:only", 3):
        assert hub_model(other) is None
    (tmp_path / "owner" / "photos").mkdir(parents=True)
    assert hub_dataset("hf:owner/photos") is None
    assert hub_model("owner/photos") is None
    assert public_name("hf:owner/photos") == "hf:photos"


def test_licences_are_checked_against_the_list_of_the_hub() -> None:
    for name in ("apache-2.0", "mit", "openrail++", "other", "cc-by-nc-4.0"):
        assert check_licence(name) == name
    for name, near in (("Apache 2.0", "apache-2.0"), ("MIT", "mit"), ("apache-2", "apache-2.0"), ("gpl-3", "gpl-3.0")):
        with pytest.raises(UserError, match=rf"--license '{name}' is not an identifier .*; did you mean {near}\?"):
            check_licence(name)
