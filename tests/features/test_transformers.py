"""Networks of transformers compared with that package's own models and image processors, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_ae.core.errors import UserError
from ldm_ae.features import DINO, ConvNeXt, DINOv2, DINOv3, ResNet50
from ldm_ae.features._transformers import Classes, TransformersNetwork

transformers = pytest.importorskip("transformers")

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
"""As in the `preprocessor_config.json` of facebook/dinov2-small, facebook/dino-vits16, facebook/convnext-small-224 and
microsoft/resnet-50."""
VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
CASES: dict[str, tuple[type[TransformersNetwork], str, str, dict[str, Any]]] = {
    "dinov2": (DINOv2, "Dinov2", "Dinov2Model", VIT | {"patch_size": 14, "image_size": 70}),
    "registers": (
        DINOv2, "Dinov2WithRegisters", "Dinov2WithRegistersModel", VIT | {"patch_size": 14, "image_size": 70},
    ),
    "dinov3": (DINOv3, "DINOv3ViT", "DINOv3ViTModel", VIT | {"patch_size": 8, "image_size": 32}),
    "dino": (DINO, "ViT", "ViTModel", VIT | {"patch_size": 8, "image_size": 32}),
    "convnext": (
        ConvNeXt, "ConvNext", "ConvNextForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 10},
    ),
    "convnextv2": (
        ConvNeXt, "ConvNextV2", "ConvNextV2ForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 10},
    ),
    "resnet": (
        ResNet50, "ResNet", "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 2, 1], "num_labels": 10},
    ),
}  # fmt: skip


def saved(folder: Path, case: str, **statistics: Any) -> Any:
    """A random network of transformers, saved as on the hub."""
    _, config, model, values = CASES[case]
    if not hasattr(transformers, model):
        pytest.skip(f"this version of transformers does not have {model}")
    torch.manual_seed(0)
    network = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**values)).eval()
    with torch.no_grad():  # a new network's biases are zero, which would hide a normalization that is off by a constant
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGENET | statistics))
    return network


def processed(levels: torch.Tensor, **statistics: Any) -> torch.Tensor:
    """What transformers' image processor makes of 8-bit images, without resizing."""
    processor = transformers.ViTImageProcessor(do_resize=False, **(IMAGENET | statistics))
    arrays = [np.asarray(image.permute(1, 2, 0)) for image in levels]
    values: torch.Tensor = processor(images=arrays, return_tensors="pt")["pixel_values"]
    return values


def photos(height: int = 70, width: int = 70) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)


def pixel_values(levels: torch.Tensor) -> torch.Tensor:
    return levels.float() / 127.5 - 1


@pytest.mark.parametrize("case", CASES)
def test_maps_equal_the_hidden_states_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = saved(tmp_path, case)
    cls = CASES[case][0]
    is_transformer = "hidden_size" in CASES[case][3]
    raw = {"normalized": False} if is_transformer else {}
    ours = cls(weights=str(tmp_path), layers=[0, 1, 2], **raw)  # type: ignore[call-arg]
    # With 72 pixels the positional embeddings of `dino` and `dinov2` are interpolated, by the package itself.
    side = ours.multiple * 5 if ours.multiple > 1 else 72
    levels = photos(side, side)
    options = {"interpolate_pos_encoding": True} if case == "dino" else {}
    with torch.no_grad():
        output = theirs(processed(levels), output_hidden_states=True, **options)
    for features, hidden in zip(ours(pixel_values(levels)), output.hidden_states[1:4], strict=True):
        if is_transformer:
            hidden = hidden[:, -25:].transpose(1, 2).reshape(2, -1, 5, 5)
        torch.testing.assert_close(features, hidden, rtol=1e-4, atol=1e-5)  # float32 in another order


@pytest.mark.parametrize("case", ["dinov2", "registers", "dinov3", "dino"])
def test_normalized_last_map_equals_the_last_hidden_state(case: str, tmp_path: Path) -> None:
    theirs, cls = saved(tmp_path, case), CASES[case][0]
    ours = cls(weights=str(tmp_path), layers=[-1])  # type: ignore[call-arg]
    options = {"interpolate_pos_encoding": True} if case == "dino" else {}
    levels = photos(ours.multiple * 4, ours.multiple * 6)  # not square: rows and columns must not be exchanged
    with torch.no_grad():
        tokens = theirs(processed(levels), **options).last_hidden_state[:, -24:]
    (features,) = ours(pixel_values(levels))
    assert features.shape == (2, 16, 4, 6)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", ["convnext", "convnextv2", "resnet"])
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs, levels = saved(tmp_path, case), photos(64, 64)
    with torch.no_grad():
        right = theirs(processed(levels)).logits
    network = CASES[case][0](weights=str(tmp_path))  # type: ignore[call-arg]
    torch.testing.assert_close(network.logits(pixel_values(levels)), right, rtol=1e-4, atol=1e-5)
    wrong = network.logits(pixel_values(levels) + 0.1)
    assert float((wrong - right).norm() / right.norm()) > 1e-3  # a wrong normalization would be seen


def test_normalization_is_that_of_the_folder(tmp_path: Path) -> None:
    other = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.4, 0.2]}
    theirs, levels = saved(tmp_path, "resnet", **other), photos(64, 64)
    with torch.no_grad():
        right = theirs(processed(levels, **other)).logits
    torch.testing.assert_close(
        ResNet50(weights=str(tmp_path)).logits(pixel_values(levels)), right, rtol=1e-4, atol=1e-5
    )


def test_invalid_normalization_is_refused(tmp_path: Path) -> None:
    for wrong in (0.5, [0.5, 0.5], ["a", "b", "c"]):
        saved(tmp_path, "resnet", image_mean=wrong)
        with pytest.raises(UserError, match=r"preprocessor_config.json: expected three numbers as image_mean, got"):
            ResNet50(weights=str(tmp_path))


def test_sizes_that_no_patch_divides_are_resized_to_the_nearest_multiple(tmp_path: Path) -> None:
    saved(tmp_path, "dinov2")
    network = DINOv2(weights=str(tmp_path))
    for size, expected in (((64, 64), (70, 70)), ((62, 90), (56, 84)), ((3, 14), (14, 14))):
        assert network.input_size(*size) == expected
        assert network(torch.zeros(1, 3, *size))[0].shape[2:] == (expected[0] // 14, expected[1] // 14)
    flat = network.prepare(torch.full((1, 3, 64, 64), 0.2))
    torch.testing.assert_close(flat, flat[:, :, :1, :1].expand_as(flat))  # resizing keeps a flat image flat
    with pytest.raises(UserError, match="image_size of DINOv2: expected a positive multiple of 14, got 64"):
        DINOv2(weights=str(tmp_path), image_size=64)


def test_identity_names_the_weights_and_changes_with_them(tmp_path: Path) -> None:
    saved(tmp_path / "mine", "resnet")
    first = ResNet50(weights=str(tmp_path / "mine")).identity
    assert first.startswith("mine (sha256 ")
    assert str(tmp_path) not in first
    state = load_file(tmp_path / "mine/model.safetensors")
    state["classifier.1.bias"] = state["classifier.1.bias"] + 1
    save_file(state, tmp_path / "mine/model.safetensors", metadata={"format": "pt"})
    assert ResNet50(weights=str(tmp_path / "mine")).identity != first


def test_pickled_weights_are_read_by_the_reader_that_builds_only_tensors(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "dino")
    levels = pixel_values(photos(32, 32))
    right = DINO(weights=str(tmp_path))(levels)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"none of the weights model.safetensors and pytorch_model.bin"):
        DINO(weights=str(tmp_path))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    for found, expected in zip(DINO(weights=str(tmp_path))(levels), right, strict=True):
        assert torch.equal(found, expected)
    torch.save({"weight": torch.zeros(1), "program": Path.touch}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can run code"):
        DINO(weights=str(tmp_path))


def test_wrong_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path, "resnet")
    with pytest.raises(UserError, match="a network of type 'resnet'; DINO takes vit"):
        DINO(weights=str(tmp_path))
    with pytest.raises(UserError, match="architecture has an effect on random weights alone"):
        ResNet50(weights=str(tmp_path), architecture={"depths": [1]})
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if "embedder.embedder.convolution" not in k}, file)
    with pytest.raises(UserError, match=r"lacks 1 weights of ResNetForImageClassification, such as resnet\.embedder"):
        ResNet50(weights=str(tmp_path))
    save_file(state | {"classifier.1.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(UserError, match="cannot be loaded as ResNetForImageClassification") as caught:
        ResNet50(weights=str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="ResNet50 takes resnet"):
        ResNet50(weights=str(tmp_path))


class Future(DINO):
    """A network that the installed transformers does not have."""

    model_types = {"future": Classes("FutureConfig", "FutureModel")}  # noqa: RUF012 - a constant


def test_missing_class_of_transformers_is_named() -> None:
    with pytest.raises(UserError, match=r"Future needs FutureModel of transformers, which .* does not have"):
        Future(weights=None)
