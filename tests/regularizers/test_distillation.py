"""Distillation: what the student decodes, learns and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm_ae.core.draws import REGULARIZER, Draws
from ldm_ae.core.errors import UserError
from ldm_ae.models import Autoencoder, GaussianPosterior, KLAutoencoder, VQAutoencoder, load_autoencoder, model_hash
from ldm_ae.models.adapters.asymmetric import AsymmetricAutoencoder
from ldm_ae.quantizers import FSQ
from ldm_ae.regularizers import Distillation
from ldm_ae.training.training_pass import TrainingPass
from tests.pictures import smooth_picture

SCALE: dict[str, Any] = {"scaling_factor": 0.5, "shift_factor": 0.25}


def kl(*, width: int = 4, channels: int = 4, seed: int = 0) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(
        block_out_channels=(width, 2 * width), layers_per_block=1, norm_num_groups=2, latent_channels=channels,
        mid_block_add_attention=False,
    )  # fmt: skip


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A folder with a model of a known scale."""
    model = kl(seed=1)
    model.set_scaling(**SCALE)
    model.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


class TakesScaled(KLAutoencoder):
    """A student like AutoencoderTiny, for scaled latents."""

    class_names = ()
    takes_scaled_latents = True


def freeze_encoder(model: Autoencoder) -> None:
    for name, parameter in model.net.named_parameters():
        parameter.requires_grad_(name.startswith(model.decoder_names))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def draws() -> Draws:
    return Draws([5, 6], REGULARIZER)


def test_student_gets_the_teachers_encoder_and_scale(teacher: str) -> None:
    student, regularizer = kl(), Distillation(teacher=teacher)
    regularizer.prepare(student)
    expected = load_autoencoder(teacher)
    assert student.latent_spec == expected.latent_spec
    assert student.latent_spec.scaling_factor == SCALE["scaling_factor"]
    with torch.no_grad():
        assert torch.equal(student.encode(images()).mode(), expected.encode(images()).mode())
        assert not torch.equal(student.decode(torch.ones(1, 4, 4, 4)), expected.decode(torch.ones(1, 4, 4, 4)))


def test_student_with_an_attention_block_more_encodes_as_the_teacher(tmp_path: Path) -> None:
    model = kl(seed=1)
    model.set_scaling(scaling_factor=0.5)  # a shift does not fit this student's class
    model.save_pretrained(tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    torch.manual_seed(0)
    student = AsymmetricAutoencoder(
        down_block_out_channels=(4, 8), up_block_out_channels=(2, 4), layers_per_down_block=1, layers_per_up_block=1,
        norm_num_groups=2,
    )  # fmt: skip
    freeze_encoder(student)
    regularizer = Distillation(teacher=teacher)
    regularizer.prepare(student)
    expected = load_autoencoder(teacher)
    with torch.no_grad():
        latents = student.encode(images()).mode()
        assert torch.allclose(latents, expected.encode(images()).mode(), atol=1e-6)
    posterior, latents = student.draw(images())
    found = regularizer(posterior, latents, images(), draws())
    assert found.latents is latents, "its own encoder is the teacher's: one pass suffices"
    assert not found.terms


def test_frozen_encoder_of_other_latents_is_refused(teacher: str) -> None:
    student, regularizer = kl(width=8), Distillation(teacher=teacher)
    freeze_encoder(student)
    regularizer.prepare(student)
    with pytest.raises(UserError, match=r"the student's encoder is not trained.*training\.trainable"):
        regularizer.verify(images())
    near, regularizer = kl(seed=1), Distillation(teacher=teacher, copy_encoder=False)
    with torch.no_grad():
        near.net.encoder.conv_out.bias += 1e-3
    freeze_encoder(near)
    regularizer.prepare(near)
    regularizer.verify(images())


@pytest.mark.parametrize(("width", "copied"), [(8, True), (4, False)])
def test_student_keeps_an_encoder_of_other_widths_or_its_own(width: int, copied: bool, teacher: str) -> None:
    student = kl(width=width)
    before = student.encode(images()).mode()
    Distillation(teacher=teacher, copy_encoder=copied).prepare(student)
    assert torch.equal(student.encode(images()).mode(), before)


def test_decoder_gets_the_teachers_latents_and_the_encoder_learns_them(teacher: str) -> None:
    student, regularizer = kl(width=8), Distillation(teacher=teacher)
    regularizer.prepare(student)
    posterior, latents = student.draw(images())
    found = regularizer(posterior, latents, images(), draws())
    target = load_autoencoder(teacher).encode(images())
    assert torch.equal(found.latents, target.sample(noise=draws().normal(*latents.shape[1:])))
    assert not found.latents.requires_grad
    assert torch.equal(found.target, images())
    difference = (posterior.mode() - target.mode()) * SCALE["scaling_factor"]
    expected = difference.square().sum(dim=(1, 2, 3))
    assert torch.allclose(found.terms["latents_distillation"], expected, rtol=1e-5)
    assert isinstance(posterior, GaussianPosterior)
    assert isinstance(target, GaussianPosterior)
    expected = (posterior.log_variance - target.log_variance).square().sum(dim=(1, 2, 3))
    assert torch.allclose(found.terms["log_variance_distillation"], expected, rtol=1e-5)
    sum(term.sum() for term in found.terms.values()).backward()  # type: ignore[union-attr]
    gradients = {name: p.grad for name, p in student.net.named_parameters() if p.grad is not None}
    assert all(not name.startswith(student.decoder_names) for name in gradients)
    assert "encoder.conv_in.weight" in gradients
    assert all(parameter.grad is None for parameter in regularizer.teacher.parameters())


def test_student_for_scaled_latents_keeps_its_scale_and_sees_scaled_latents(teacher: str) -> None:
    """As a TAESD, which pipelines give what the diffusion model gives."""
    torch.manual_seed(0)
    student = TakesScaled(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    )
    regularizer = Distillation(teacher=teacher)
    regularizer.prepare(student)
    assert student.latent_spec.scaling_factor == 1.0
    posterior, latents = student.draw(images())
    found = regularizer(posterior, latents, images(), draws())
    target = load_autoencoder(teacher).encode(images())
    sample = target.sample(noise=draws().normal(*latents.shape[1:]))
    assert torch.allclose(found.latents, (sample - SCALE["shift_factor"]) * SCALE["scaling_factor"], atol=1e-6)
    wanted = (target.mode() - SCALE["shift_factor"]) * SCALE["scaling_factor"]
    expected = (posterior.mode() - wanted).square().sum(dim=(1, 2, 3))
    assert torch.allclose(found.terms["latents_distillation"], expected, rtol=1e-5)


def test_frozen_copy_of_the_encoder_encodes_for_both(teacher: str) -> None:
    student, regularizer = kl(), Distillation(teacher=teacher)
    freeze_encoder(student)
    regularizer.prepare(student)
    calls: list[nn.Module] = []
    regularizer.teacher.net.encoder.register_forward_hook(lambda module, *_: calls.append(module))
    output = TrainingPass(student, regularizer)(images(), None, draws())
    assert calls == []
    assert output.terms == {}
    output.reconstructions.square().sum().backward()
    assert student.net.decoder.conv_out.weight.grad is not None


def test_every_sample_is_independent(teacher: str) -> None:
    student, regularizer = kl(width=8), Distillation(teacher=teacher)
    regularizer.prepare(student)
    posterior, latents = student.draw(images())
    whole = regularizer(posterior, latents, images(), draws())
    posterior, latents = student.draw(images()[1:])
    part = regularizer(posterior, latents, images()[1:], Draws([6], REGULARIZER))
    assert torch.allclose(part.latents, whole.latents[1:], atol=1e-6)
    assert torch.allclose(part.terms["latents_distillation"], whole.terms["latents_distillation"][1:], rtol=1e-4)


def test_teacher_is_frozen_and_in_no_checkpoint(teacher: str) -> None:
    regularizer = Distillation(teacher=teacher).train()
    assert regularizer.state_dict() == {}
    assert not list(regularizer.learning_parameters())
    assert not any(module.training for module in regularizer.teacher.modules())
    assert regularizer.identity == f"Distillation of {model_hash(load_autoencoder(teacher))}"


def test_students_with_other_latents_are_refused(teacher: str) -> None:
    regularizer = Distillation(teacher=teacher)
    with pytest.raises(UserError, match="have 4 channels and downsample factor 2, those of the student 3 and 2"):
        regularizer.prepare(kl(channels=3))
    codes = VQAutoencoder(
        quantizer=FSQ((3, 3, 3, 3)), latent_channels=4, block_out_channels=(4, 8), layers_per_block=1,
        norm_num_groups=2, mid_block_add_attention=False,
    )  # fmt: skip
    with pytest.raises(UserError, match="must be continuous, but QuantizedAutoencoder has codes"):
        regularizer.prepare(codes)


class Rounding(nn.Module):
    """A network that reconstructs images in [0, 1] and clamps others, in the place of a decoder."""

    def __init__(self, low: float):
        super().__init__()
        self.low = low

    def forward(self, latents: Tensor) -> Tensor:
        return nn.functional.interpolate(latents[:, :3], scale_factor=2.0, mode="bilinear").clamp(self.low, 1.0)


@pytest.mark.parametrize(("low", "refused"), [(0.0, True), (-1.0, False)])
def test_teacher_for_images_in_another_range_is_refused(low: float, refused: bool, teacher: str) -> None:
    regularizer = Distillation(teacher=teacher)

    class Halving(nn.Module):
        def forward(self, pixel_values: Tensor) -> Tensor:
            small = nn.functional.avg_pool2d(pixel_values, 2)
            return torch.cat([small, torch.zeros(len(small), 5, *small.shape[-2:])], dim=1)

    net = regularizer.teacher.net
    net.encoder, net.decoder, net.quant_conv, net.post_quant_conv = Halving(), Rounding(low), None, None
    photo = torch.from_numpy(np.array(smooth_picture(0, 32, 32))).permute(2, 0, 1)[None] / 127.5 - 1
    if refused:
        with pytest.raises(UserError, match=r"reconstructs images in \[0, 1\] \d+ times better than in \[-1, 1\]"):
            regularizer.verify(photo)
    else:
        regularizer.verify(photo)
    Distillation(teacher=teacher).verify(photo)  # of an untrained one nothing is known


def test_encoder_of_another_scale_is_not_shared(teacher: str) -> None:
    """A frozen student for scaled latents would give its decoder unscaled ones."""
    torch.manual_seed(0)
    student = TakesScaled(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    )
    freeze_encoder(student)
    before, regularizer = student.encode(images()).mode(), Distillation(teacher=teacher)
    regularizer.prepare(student)
    assert torch.equal(student.encode(images()).mode(), before)
    posterior, latents = student.draw(images())
    found = regularizer(posterior, latents, images(), draws())
    sample = load_autoencoder(teacher).encode(images()).sample(noise=draws().normal(*latents.shape[1:]))
    assert torch.allclose(found.latents, (sample - SCALE["shift_factor"]) * SCALE["scaling_factor"], atol=1e-6)
