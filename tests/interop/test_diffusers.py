"""The diffusers export: equal outputs, the measured scale, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from ldm_ae.core.errors import RunError, UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, open_source
from ldm_ae.interop import export_diffusers, measure_scaling
from ldm_ae.models import ChannelStatistics, KLAutoencoder, load_autoencoder
from ldm_ae.models.loading.weights import WEIGHTS


def loader(folder: Path, batch_size: int) -> EvaluationLoader:
    return EvaluationLoader(open_source(folder), ImageTransform(size=32), batch_size=batch_size)


def test_exported_model_reconstructs_equally_in_diffusers(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    tiny_model.eval()
    other = AutoencoderKL.from_pretrained(export_diffusers(tiny_model, tmp_path / "out")).eval()
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        ours = tiny_model.decode(tiny_model.encode(pixels).mode())
        theirs = other.decode(other.encode(pixels).latent_dist.mode()).sample
    # The same weights through the same library: only memory layout may reorder float32 sums.
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


def test_export_writes_the_measured_scale_without_changing_the_model(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    statistics = ChannelStatistics(4)
    latents = 2.0 * torch.randn(16, 4, 8, 8) + torch.arange(4.0).view(1, 4, 1, 1)
    statistics.update(latents)
    before = tiny_model.latent_spec
    export_diffusers(tiny_model, tmp_path / "out", scaling=statistics)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["scaling_factor"] == pytest.approx(1.0 / float(latents.double().std(correction=0)), rel=1e-9)
    assert config["latents_mean"] is None
    assert config["latents_std"] is None
    assert tiny_model.latent_spec == before
    export_diffusers(tiny_model, tmp_path / "out", scaling=statistics, per_channel=True, overwrite=True)
    spec = load_autoencoder(tmp_path / "out").latent_spec
    scaled = spec.scale(latents).double()
    # Whitened by its own statistics; float32 holds 1e-7 of values near 10.
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        scaled.std(dim=(0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_export_writes_half_precision_weights(tiny_model: KLAutoencoder, dtype: torch.dtype, tmp_path: Path) -> None:
    export_diffusers(tiny_model, tmp_path / "out", weights=dtype, sample_size=64)
    written = load_file(tmp_path / "out" / WEIGHTS)
    for name, tensor in tiny_model.net.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(written[name], tensor.to(dtype)), name
    again = load_autoencoder(tmp_path / "out")
    assert again.last_layer.dtype == torch.float32
    assert again.sample_size == 64 != tiny_model.sample_size
    with pytest.raises(UserError, match="is not divisible"):
        export_diffusers(tiny_model, tmp_path / "out", sample_size=63)
    with torch.no_grad():
        tiny_model.net.decoder.conv_out.bias[0] = 3.4e38 if dtype == torch.bfloat16 else 1e5
    with pytest.raises(UserError, match=r"decoder\.conv_out\.bias has values that .* cannot hold"):
        export_diffusers(tiny_model, tmp_path / "out", weights=dtype)
    assert load_autoencoder(tmp_path / "out").sample_size == 64  # the earlier export stands


def test_export_refuses_a_scale_without_images(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give more images"):
        export_diffusers(tiny_model, tmp_path / "out", scaling=ChannelStatistics(4))
    assert not (tmp_path / "out").exists()


def test_measured_scale_does_not_depend_on_batches(tiny_model: KLAutoencoder, image_folder: Path) -> None:
    tiny_model.eval()
    done: list[int] = []
    one = measure_scaling(tiny_model, loader(image_folder, 5), progress=done.append)
    other = measure_scaling(tiny_model, loader(image_folder, 12))
    assert done == [5, 10, 12]
    assert one.count == 12 * 8 * 8
    # Float32 convolutions over another batch size reorder sums.
    torch.testing.assert_close(one.channel_mean, other.channel_mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(one.channel_std, other.channel_std, atol=1e-6, rtol=1e-6)


def test_exported_files_follow_the_umask(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        out = export_diffusers(tiny_model, tmp_path / "out")
    finally:
        os.umask(umask)
    assert {path.name: path.stat().st_mode & 0o777 for path in [out, *out.iterdir()]} == {
        "out": 0o755, "config.json": 0o644, "diffusion_pytorch_model.safetensors": 0o644,
    }  # fmt: skip


def test_export_does_not_overwrite_other_folders(tiny_model: KLAutoencoder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\)"):
        export_diffusers(tiny_model, tmp_path / "out")
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        export_diffusers(tiny_model, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_failed_export_keeps_the_previous_one(
    tiny_model: KLAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_diffusers(tiny_model, tmp_path / "out")
    before = (out / "diffusion_pytorch_model.safetensors").read_bytes()

    def half_written(self: KLAutoencoder, folder: Path) -> None:
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KLAutoencoder, "save_pretrained", half_written)
    with pytest.raises(RunError, match=r"cannot write .*out: the disk is full, 2[\d,]+ bytes are needed"):
        export_diffusers(tiny_model, tmp_path / "out", overwrite=True)
    assert (out / "diffusion_pytorch_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
