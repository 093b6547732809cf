"""`export --into` writes a pipeline with the autoencoder exchanged, which opens and decodes as the model does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline
from torch import Tensor

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.interop import export_into_pipeline
from ldm_ae.models import Autoencoder, KLAutoencoder, VQAutoencoder, load_autoencoder
from ldm_ae.models.adapters.tiny import TinyAutoencoder
from ldm_ae.quantizers import FSQ, VQ
from tests.interop.test_decode_lines import start, unet

SMALL: dict[str, Any] = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4}
ABSENT = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
SCALE = {"scaling_factor": 0.18215, "shift_factor": 0.0}


@pytest.fixture
def vae() -> KLAutoencoder:
    model = KLAutoencoder(**SMALL).eval()
    model.set_scaling(**SCALE)
    return model


@pytest.fixture
def pipeline(vae: KLAutoencoder, tmp_path: Path) -> Path:
    """A Stable Diffusion pipeline without text encoder, and files beside its parts."""
    StableDiffusionPipeline(
        **dict.fromkeys(ABSENT), vae=vae.net, unet=unet(), scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
    ).save_pretrained(tmp_path / "sd")  # fmt: skip
    (tmp_path / "sd/README.md").write_text("a card")
    (tmp_path / "sd/v1-5-pruned.safetensors").write_bytes(b"the whole model")
    (tmp_path / "sd/.cache").mkdir()
    return tmp_path / "sd"


def with_other_decoder(vae: KLAutoencoder) -> KLAutoencoder:
    """A model of which only the decoder was trained further, with a scale that was measured anew."""
    other = KLAutoencoder(**SMALL).eval()
    other.net.load_state_dict(vae.net.state_dict())
    with torch.no_grad():
        for parameter in other.net.decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.set_scaling(scaling_factor=0.5)
    return other


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def opened(folder: Path, **options: Any) -> Any:
    """The pipeline by diffusers' own function; parts that it does not have must be named."""
    return DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(ABSENT), **options)


def decoded(pipe: Any, scaled: Tensor) -> Tensor:
    """As Stable Diffusion's pipeline decodes."""
    with torch.no_grad():
        return pipe.vae.decode(scaled / pipe.vae.config.scaling_factor).sample


@pytest.mark.slow
@torch.no_grad()
def test_decoder_is_exchanged_and_the_scale_kept(vae: KLAutoencoder, pipeline: Path, tmp_path: Path) -> None:
    before, model = digests(pipeline), with_other_decoder(vae)
    found = export_into_pipeline(model, pipeline, tmp_path / "out")
    assert (found.part, found.class_name) == ("vae", "StableDiffusionPipeline")
    assert found.scale == (
        "the encoder is the pipeline's, and its scaling_factor 0.18215 is kept in place of the model's scaling_factor "
        "0.50000"
    )
    assert found.notes == ("not copied, because they may hold the earlier autoencoder: v1-5-pruned.safetensors",)
    assert digests(pipeline) == before
    assert model.latent_spec.scaling_factor == 0.5
    pipe = opened(tmp_path / "out")
    assert type(pipe) is StableDiffusionPipeline
    scaled = start()
    ours = load_autoencoder(tmp_path / "out")
    torch.testing.assert_close(decoded(pipe, scaled), model.decode(scaled / 0.18215), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(ours.unscale(scaled)), decoded(pipe, scaled), atol=1e-5, rtol=1e-5)
    after = digests(tmp_path / "out")
    same = {name for name in before if not name.startswith(("vae/", "v1-5"))}
    assert {name: after[name] for name in same - {"model_index.json"}} == {
        name: before[name] for name in same - {"model_index.json"}
    }
    assert set(after) == {*same, "vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    index = [json.loads((folder / "model_index.json").read_text()) for folder in (pipeline, tmp_path / "out")]
    assert index[0] == index[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipeline_in_half_precision_has_the_same_encoder(
    dtype: torch.dtype, vae: KLAutoencoder, pipeline: Path, tmp_path: Path
) -> None:
    model = with_other_decoder(vae)
    AutoencoderKL.from_pretrained(pipeline / "vae").to(dtype).save_pretrained(pipeline / "vae")  # type: ignore[arg-type]
    found = export_into_pipeline(model, pipeline, tmp_path / "out", weights=torch.float16)
    assert "the encoder is the pipeline's" in found.scale
    pipe = opened(tmp_path / "out", torch_dtype=torch.float16)
    assert pipe.vae.dtype == torch.float16


@pytest.mark.slow
def test_other_encoder_is_refused_unless_asked_for(vae: KLAutoencoder, pipeline: Path, tmp_path: Path) -> None:
    model = KLAutoencoder(**SMALL).eval()
    with pytest.raises(UserError, match=r"the encoder of the model differs from .*vae.*add --other-latents"):
        export_into_pipeline(model, pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    found = export_into_pipeline(model, pipeline, tmp_path / "out", other_latents=True)
    assert "the diffusion model was trained on other latents" in found.notes[0]
    assert "the model has no scale of its own; scaling_factor 0.18215 of the pipeline is not carried" in found.notes[1]
    model.set_scaling(scaling_factor=0.7)
    found = export_into_pipeline(model, pipeline, tmp_path / "again", other_latents=True)
    assert found.scale == "the model keeps its own scaling_factor 0.70000; the pipeline's was scaling_factor 0.18215"
    assert opened(tmp_path / "again").vae.config.scaling_factor == 0.7


@torch.no_grad()
def test_tiny_autoencoder_replaces_one_of_another_class(pipeline: Path, tmp_path: Path) -> None:
    tiny = TinyAutoencoder(
        encoder_block_out_channels=(4,) * 3, decoder_block_out_channels=(4,) * 3, num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).eval()  # fmt: skip
    found = export_into_pipeline(tiny, pipeline, tmp_path / "out", other_latents=True)
    assert "the class of vae was AutoencoderKL and is AutoencoderTiny" in found.notes
    pipe = opened(tmp_path / "out")
    assert type(pipe.vae).__name__ == "AutoencoderTiny"
    torch.testing.assert_close(decoded(pipe, start()), tiny.decode(start()), atol=1e-5, rtol=1e-5)


NARROW = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
MISFITS: dict[str, tuple[Any, str]] = {
    "channels": (lambda: KLAutoencoder(**SMALL, latent_channels=8), "latent channels: expected 4 .*, got 8"),
    "grey": (lambda: KLAutoencoder(pixels="grey", **SMALL), r"the images: expected rgb .*, got grey"),
    "16 bits": (lambda: KLAutoencoder(pixels={"bits": 16}, **SMALL), r"the images: expected rgb .*, got .* of 16 bits"),
    "factor": (lambda: KLAutoencoder(**NARROW), "the downsample factor: expected 4 .*, got 2"),
    "codes": (lambda: VQAutoencoder(quantizer=VQ(8, 4), **SMALL), "the number of codes: expected None .*, got 8"),
    "class": (lambda: VQAutoencoder(quantizer=FSQ((4, 4, 3)), **SMALL), "diffusers has no class QuantizedAutoencoder"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_model_with_latents_of_another_form_is_refused(name: str, pipeline: Path, tmp_path: Path) -> None:
    make, words = MISFITS[name]
    model: Autoencoder = make()
    with pytest.raises(UserError, match=words) as caught:
        export_into_pipeline(model, pipeline, tmp_path / "out", other_latents=True)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_damaged_pipelines_are_refused_in_one_line(vae: KLAutoencoder, pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is inside the pipeline"):
        export_into_pipeline(vae, pipeline, pipeline / "new")
    with pytest.raises(UserError, match=r"is not empty"):
        export_into_pipeline(vae, pipeline, pipeline)
    index = pipeline / "model_index.json"
    sound = json.loads(index.read_text())
    for text, words in (
        ("{", "is not valid JSON"), ("[]", "has no _class_name"),
        (json.dumps(sound | {"../unet": ["diffusers", "X"]}), r"names a part '\.\./unet'; expected the name"),
        (json.dumps({key: value for key, value in sound.items() if key != "vae"}), "has no autoencoder: expected a"),
    ):  # fmt: skip
        index.write_text(text)
        with pytest.raises(UserError, match=words):
            export_into_pipeline(vae, pipeline, tmp_path / "out")
    index.unlink()
    with pytest.raises(UserError, match=r"is not a pipeline folder of diffusers: expected model_index\.json"):
        export_into_pipeline(vae, pipeline, tmp_path / "out")


@pytest.mark.slow
def test_upcast_of_the_pipeline_is_kept(vae: KLAutoencoder, pipeline: Path, tmp_path: Path) -> None:
    model = with_other_decoder(vae)
    for asked in (True, False):
        config = json.loads((pipeline / "vae/config.json").read_text())
        (pipeline / "vae/config.json").write_text(json.dumps(config | {"force_upcast": asked}))
        model.net.register_to_config(force_upcast=False)
        export_into_pipeline(model, pipeline, tmp_path / str(asked))
        assert load_autoencoder(tmp_path / str(asked)).net.config["force_upcast"] is asked


@pytest.mark.slow
def test_command_writes_the_pipeline(
    vae: KLAutoencoder, pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_other_decoder(vae).save_pretrained(tmp_path / "model")
    command = ["export", str(tmp_path / "model"), "--into", str(pipeline), str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "vae: the encoder is the pipeline's, and its scaling_factor 0.18215 is kept" in said.out
    assert said.out.splitlines()[-1] == f"pipeline for StableDiffusionPipeline.from_pretrained: {tmp_path / 'out'}"
    assert opened(tmp_path / "out").vae.config.scaling_factor == 0.18215
    assert main([*command[:-1], str(tmp_path / "new"), "--scaling", "keep"]) == 2
    assert "--into and --scaling exclude each other" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "new"), "--other-latents"]) == 2
    assert "--other-latents has no effect without --into" in capsys.readouterr().err
