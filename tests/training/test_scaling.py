"""The scale of a run's model: an unchanged encoder keeps it exactly, that of a changed one is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from ldm_ae.cli import main
from ldm_ae.commands._inspection import inspect_model
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.interop import measure_scaling, settle_scaling
from ldm_ae.models import ChannelStatistics, KLAutoencoder, load_autoencoder
from ldm_ae.models.scaling import SCALE, SCALED_ENCODER, encoder_sha256, scale_is_known
from ldm_ae.training.run import train
from tests.training.common import small_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_parser")]

VECTORS = {"latents_mean": (0.5, -1.0, 2.0, 0.25), "latents_std": (1.5, 0.5, 3.0, 2.0)}
FORMS: dict[str, dict[str, Any]] = {
    "sd": {"scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None, "latents_std": None},
    "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "latents_mean": None, "latents_std": None},
    "playground": {"scaling_factor": 0.5, "shift_factor": None, **VECTORS},
}
"""Configurations of published autoencoders."""
FORM_PARAMETERS = [name if name == "sd" else pytest.param(name, marks=pytest.mark.slow) for name in FORMS]


def published(form: str, folder: Path) -> Path:
    model = small_model()
    model.net.register_to_config(**FORMS[form])
    model.save_pretrained(folder)
    return folder


def train_from(model: Path, images: Path, out: Path, *, trainable: list[str], steps: int = 2, **data: object) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    config = {
        "model": {"class_path": "ldm_ae.models.KLAutoencoder", "init_args": {"pretrained": str(model)}},
        "data": {"train": str(images), "resolution": 16, "workers": 0, "validation_images": 3} | data,
        "objective": {"regularization_weights": {"kl": 1e-6}, "gan_weight": 0.0},
        "optimizer": {"learning_rate": 1e-2},
        "training": {
            "max_steps": steps, "batch_size": 4, "precision": "no", "ema_decay": 0.9, "log_every": 1,
            "sample_every": 10, "validate_every": 10, "checkpoint_every": 1, "trainable": trainable,
        },
    }  # fmt: skip
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return train(["--config", str(path), "--out", str(out)])


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def as_json(form: str) -> dict[str, Any]:
    return json.loads(json.dumps(FORMS[form]))


def scale_of(folder: Path) -> dict[str, Any]:
    return {key: config_of(folder)[key] for key in SCALE}


DECODER = ["decoder.*", "post_quant_conv.*"]


@pytest.mark.parametrize("form", FORM_PARAMETERS)
def test_decoder_only_training_keeps_the_scale(
    form: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published(form, tmp_path / "published")
    out = train_from(model, image_folder, tmp_path / "run", trainable=DECODER)
    assert scale_of(out / "model") == as_json(form)
    assert "the encoder is unchanged and keeps its scaling_factor" in capsys.readouterr().err
    assert any(
        not torch.equal(a, b)
        for a, b in zip(
            load_autoencoder(out).net.decoder.parameters(),  # type: ignore[union-attr]
            load_autoencoder(model).net.decoder.parameters(),  # type: ignore[union-attr]
            strict=True,
        )
    )
    exported = tmp_path / "exported"
    small = ["--size", "16", "--workers", "0", "--device", "cpu"]
    assert main(["export", str(out), str(exported), "--images", str(image_folder), *small]) == 0
    assert scale_of(exported) == as_json(form)
    assert "is kept; --scaling measure measures it" in capsys.readouterr().out


def test_legacy_factor_beside_vectors_is_converted(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoder training and its export convert it: SDXL's line inverts the scale with the written configuration."""
    mean, std = (torch.tensor(vector, dtype=torch.float64) for vector in VECTORS.values())
    pooled = float((std.square() + (mean - mean.mean()).square()).mean().sqrt())
    old = small_model()
    old.net.register_to_config(scaling_factor=1.0 / pooled, shift_factor=0.0, **VECTORS)
    old.save_pretrained(tmp_path / "old")
    assert config_of(tmp_path / "old")["scaling_factor"] == 1.0 / pooled
    run = train_from(tmp_path / "old", image_folder, tmp_path / "run", trainable=DECODER)
    assert "the encoder is unchanged and keeps its scaling_factor 1.00000" in capsys.readouterr().err
    kept = ["--images", str(image_folder), "--size", "16", "--workers", "0", "--device", "cpu"]
    assert main(["export", str(run), str(tmp_path / "exported"), *kept]) == 0
    assert "is kept; --scaling measure measures it" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "old"), str(tmp_path / "directly")]) == 0
    latents = torch.randn(2, 4, 3, 3)
    whitened = (latents - mean.view(1, 4, 1, 1).float()) / std.view(1, 4, 1, 1).float()
    for folder in (run / "model", tmp_path / "exported", tmp_path / "directly"):
        config = config_of(folder)
        torch.testing.assert_close(load_autoencoder(folder).latent_spec.scale(latents), whitened)
        mean_of, std_of = (torch.tensor(config[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
        torch.testing.assert_close(whitened * std_of / config["scaling_factor"] + mean_of, latents)


@pytest.mark.parametrize("form", FORM_PARAMETERS)
def test_scale_of_a_changed_encoder_is_measured_in_its_published_form(
    form: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published(form, tmp_path / "published")
    out = train_from(model, image_folder, tmp_path / "run", trainable=["*"])
    said = capsys.readouterr().err
    found, spec = scale_of(out / "model"), load_autoencoder(out).latent_spec
    assert f"scaling_factor {found['scaling_factor']:.5f}" in said
    assert f"in place of the scaling_factor {FORMS[form]['scaling_factor']:.5f}" in said
    assert found["shift_factor"] is not None
    trained = load_autoencoder(out)
    assert scale_is_known(trained)
    images = EvaluationLoader(open_source(image_folder), ImageTransform(size=16), batch_size=4)
    latents = []
    for batch in images:
        with torch.no_grad():
            latents.append(spec.scale(trained.encode(batch.pixel_values).sample()))
    scaled = torch.cat(latents)
    if form == "playground":
        assert found["scaling_factor"] == 0.5
        assert found["latents_std"] != list(VECTORS["latents_std"])
        assert scaled.std(dim=(0, 2, 3)).tolist() == pytest.approx([0.5] * 4, abs=0.2)
    else:
        assert found["latents_mean"] is found["latents_std"] is None
        assert found["scaling_factor"] != FORMS[form]["scaling_factor"]
        assert float(scaled.std()) == pytest.approx(1.0, abs=0.2)  # three of these images were measured
    if form == "flux":
        assert found["shift_factor"] not in (0.0, 0.1159)
        assert float(scaled.mean()) == pytest.approx(0.0, abs=0.3)
    else:
        assert found["shift_factor"] == 0.0


@pytest.mark.slow
def test_resumed_run_measures_the_scale_of_its_changed_encoder(image_folder: Path, tmp_path: Path) -> None:
    model = published("flux", tmp_path / "published")
    whole = train_from(model, image_folder, tmp_path / "whole", trainable=["*"], steps=3)
    parts = train_from(model, image_folder, tmp_path / "parts", trainable=["*"], steps=1)
    config = (tmp_path / "whole.yaml").read_text()
    (tmp_path / "parts.yaml").write_text(config)
    AcceleratorState._reset_state(reset_partial_state=True)
    train(["--config", str(tmp_path / "parts.yaml"), "--out", str(parts)])
    assert scale_of(parts / "model") == scale_of(whole / "model")
    assert scale_of(parts / "model")["scaling_factor"] != 0.3611


@pytest.mark.slow
def test_export_measures_the_scale_of_a_changed_encoder(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published("sd", tmp_path / "published")
    out = train_from(model, image_folder, tmp_path / "run", trainable=["*"])
    checkpoint = out / "checkpoints/step-00000002"
    assert config_of(checkpoint / "ema")["scaling_factor"] == 0.18215  # of the encoder that it started from
    assert not scale_is_known(load_autoencoder(checkpoint))
    states = [inspect_model(folder)["scale"] for folder in (model, checkpoint / "ema", out / "model")]
    assert states == ["measured", "measured before the encoder was trained further", "measured"]
    capsys.readouterr()
    assert main(["export", str(checkpoint), str(tmp_path / "as it is")]) == 0
    err = capsys.readouterr().err
    assert "the encoder was trained further since its scaling_factor 0.18215 was measured; --images IMAGES" in err
    small = ["--size", "16", "--workers", "0", "--device", "cpu"]
    for name, weights in (("fp32", "fp32"), ("fp16", "fp16")):
        command = ["export", str(checkpoint), str(tmp_path / name), "--images", str(image_folder), *small]
        assert main([*command, "--weights", weights]) == 0
        found = scale_of(tmp_path / name)["scaling_factor"]
        assert f"scaling_factor 0.18215 -> scaling_factor {found:.5f}, measured on" in capsys.readouterr().out
        assert scale_is_known(load_autoencoder(tmp_path / name))


def test_changed_encoder_without_validation_images_causes_a_warning(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = published("sd", tmp_path / "published")
    out = train_from(model, image_folder, tmp_path / "run", trainable=["*"], validation_images=0)
    said = capsys.readouterr().err
    assert "without validation images the model has the scaling_factor 0.18215 of the encoder that training" in said
    alarms = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines() if "alarm" in line]
    assert alarms[-1]["alarm"] == "no_scale"


def constant_encoder(model: KLAutoencoder, value: float, spread: float = 0.0) -> None:
    """Give the same latents for every image, up to `spread`."""
    assert model.net.quant_conv is not None
    with torch.no_grad():
        model.net.quant_conv.weight.mul_(spread)
        model.net.quant_conv.bias[:4] = value
        model.net.quant_conv.bias[4:] = -30.0


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
def test_constant_latents_are_detected(spread: float) -> None:
    statistics = ChannelStatistics(2)
    statistics.update(20.0 + 20.0 * spread * torch.tensor([-1.0, 1.0]).double().repeat(1, 2, 8, 8))
    assert statistics.is_constant == (spread < 1e-5)
    assert statistics.constant_channels == ([0, 1] if spread < 1e-5 else [])
    if spread < 1e-5:
        assert statistics.scaling_factor is None
    else:
        assert statistics.scaling_factor == pytest.approx(1 / (20.0 * spread), rel=1e-6)


@pytest.mark.slow
def test_nearly_constant_latents_leave_the_model_without_a_scale(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    constant_encoder(model, 0.5, 1e-7)
    model.save_pretrained(tmp_path / "collapsed")
    out = train_from(tmp_path / "collapsed", image_folder, tmp_path / "run", trainable=DECODER)
    said = capsys.readouterr().err
    assert "warning at step 2: the model keeps no scale: the latents are constant (standard deviation" in said
    assert "have collapsed, or the encoder is not trained" in said
    assert config_of(out / "model")["scaling_factor"] == 1.0
    small = ["--size", "16", "--workers", "0", "--device", "cpu"]
    images = str(image_folder)
    assert main(["encode", str(out), images, str(tmp_path / "store"), *small]) == 0
    captured = capsys.readouterr()
    assert "12 images, 0 unusable, in fp32, no scaling_factor" in captured.out
    assert "note: the latents are constant" in captured.err
    assert json.loads((tmp_path / "store/stats.json").read_text())["scaling_factor"] is None
    assert main(["evaluate", str(out), images, *small, "--perceptual", "none", "--features", "none",
                 "--out", str(tmp_path / "scores")]) == 0  # fmt: skip
    assert "scaling_factor" not in json.loads((tmp_path / "scores/metrics.json").read_text())["scores"]
    assert main(["export", str(out), str(tmp_path / "exported"), "--images", images, *small]) == 2
    assert "the latents are constant" in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "exported"), "--images", images, *small, "--scaling", "keep"]) == 0
    assert config_of(tmp_path / "exported")["scaling_factor"] == 1.0


def test_constant_channel_has_no_channel_scale(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    with torch.no_grad():
        assert model.net.quant_conv is not None
        model.net.quant_conv.weight[2::4] = 0.0
        model.net.quant_conv.bias[6] = -30.0
    model.save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--images", str(image_folder),
               "--size", "16", "--workers", "0", "--device", "cpu"]  # fmt: skip
    assert main([*command, "--per-channel"]) == 2
    assert "channel 2 of the latents is constant" in capsys.readouterr().err
    assert main(command) == 0
    encode = ["encode", str(tmp_path / "model"), str(image_folder), str(tmp_path / "store"), *command[5:]]
    assert main(encode) == 0
    assert "note: channels 2 of the latents are constant; no scale gives them unit variance" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "store"), str(tmp_path / "h5"), "--format", "repa-e",
                 "--images", str(image_folder)]) == 2  # fmt: skip
    assert "channel 2 of the latents is constant, and REPA-E divides" in capsys.readouterr().err


def test_encoder_hash_covers_all_weights_that_latents_depend_on(tmp_path: Path) -> None:
    model = small_model()
    before = encoder_sha256(model)
    with torch.no_grad():
        model.net.decoder.conv_out.weight.mul_(2.0)
        assert model.net.post_quant_conv is not None
        model.net.post_quant_conv.weight.mul_(2.0)
    assert encoder_sha256(model) == before
    with torch.no_grad():
        assert model.net.quant_conv is not None
        model.net.quant_conv.bias[0] += 1e-6
    assert encoder_sha256(model) != before
    model.set_scaling(scaling_factor=0.5)
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)[SCALED_ENCODER] == encoder_sha256(load_autoencoder(tmp_path)) == encoder_sha256(model)
    assert load_autoencoder(tmp_path).net.config[SCALED_ENCODER] == encoder_sha256(model)  # type: ignore[index]


def test_settle_scaling_measures_a_missing_scale(image_folder: Path) -> None:
    model = small_model()
    images = EvaluationLoader(open_source(image_folder), ImageTransform(size=16), batch_size=4)
    words, scaled = settle_scaling(model, images)
    assert scaled
    assert "in place of no scale" in words
    statistics = measure_scaling(model, images)
    assert model.latent_spec.scaling_factor == pytest.approx(1 / statistics.pooled_std, rel=1e-6)
    assert settle_scaling(model, images)[0].startswith("the encoder is unchanged and keeps its scaling_factor")
