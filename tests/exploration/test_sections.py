"""Values of the sections against known answers."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import ldm_ae
from ldm_ae.core.code_maps import pack_maps, split_maps
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.exploration import projections as projections_module
from ldm_ae.exploration import spread
from ldm_ae.exploration.arithmetic import class_means
from ldm_ae.exploration.codebook_atlas import patches
from ldm_ae.exploration.encoded import Encoded
from ldm_ae.exploration.interpolation import angle, linear, spherical
from ldm_ae.exploration.maps_of_codes import without_finer_maps
from ldm_ae.exploration.projections import missing, neighbour_agreement, principal_components, projections
from ldm_ae.exploration.samples import gaussian
from ldm_ae.exploration.traversals import traverse
from ldm_ae.models import HierarchicalVQAutoencoder, KLAutoencoder
from ldm_ae.priors import SavedPrior
from ldm_ae.priors.pixelcnn import GatedPixelCNN
from ldm_ae.quantizers import VQ
from tests.exploration.conftest import SMALL, Made
from tests.exploration.linear import LinearAutoencoder
from tests.pictures import write_class_folders

PLACES = ["map", "channels", "uncertainty", "traversals", "interpolation", "arithmetic", "samples", "maps", "codebook"]


def test_principal_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    features = torch.randn(40, 7, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 8)
    coordinates, fractions = principal_components(features, 3)
    exact = features.double().numpy()
    reference = PCA(3, svd_solver="full").fit(exact)
    torch.testing.assert_close(coordinates, torch.from_numpy(reference.transform(exact)).float())
    torch.testing.assert_close(fractions, torch.from_numpy(reference.explained_variance_ratio_), rtol=1e-6,
                               atol=0)  # fmt: skip


def test_projections_of_one_dimension_and_of_equal_images_are_finite() -> None:
    for features in (torch.arange(5.0)[:, None], torch.ones(5, 4)):
        (plane,) = projections(features, 0)
        assert plane.coordinates.shape == (5, 2)
        assert plane.coordinates.isfinite().all()


@pytest.mark.slow
def test_tsne_separates_two_clouds_and_repeats() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(40, 5, generator=generator) + 20.0 * (torch.arange(40) % 2)[:, None]
    first, second = ({each.name: each.coordinates for each in projections(features, 3)} for _ in range(2))
    torch.testing.assert_close(first["t-SNE"], second["t-SNE"], rtol=0, atol=0)
    assert neighbour_agreement(first["t-SNE"], torch.arange(40) % 2) == 1.0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("umap") is None, reason="needs umap-learn, whose start takes half a minute"
)
def test_umap_separates_two_clouds_and_repeats() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(40, 5, generator=generator) + 20.0 * (torch.arange(40) % 2)[:, None]
    first, second = ({each.name: each.coordinates for each in projections(features, 3)} for _ in range(2))
    assert list(first) == ["PCA", "t-SNE", "UMAP"]
    torch.testing.assert_close(first["UMAP"], second["UMAP"], rtol=0, atol=0)
    assert neighbour_agreement(first["UMAP"], torch.arange(40) % 2) == 1.0
    equal = {each.name: each.coordinates for each in projections(torch.ones(40, 5), 0)}
    assert equal["UMAP"].isfinite().all()


def test_missing_projections_are_named_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    monkeypatch.setattr(projections_module, "_installed", there.__contains__)
    assert missing() == ["t-SNE needs pip install scikit-learn.", "UMAP needs pip install umap-learn."]
    assert [each.name for each in projections(torch.randn(40, 3), 0)] == ["PCA"]
    there.add("sklearn")
    assert missing() == ["UMAP needs pip install umap-learn."]


def test_spherical_path_halves_the_angle_and_keeps_the_norm() -> None:
    start, end = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    end = 3.0 * end
    middle = spherical(start, end, torch.tensor([0.5]))[0]
    torch.testing.assert_close(angle(start, middle), angle(start, end) / 2)
    torch.testing.assert_close(middle.norm(), (start.norm() + end.norm()) / 2)
    path = spherical(start, end, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(path, torch.stack([start, end]))
    # No path of its own: the straight line.
    half = torch.tensor([0.5])
    for other in (2 * start, -start, torch.zeros_like(start)):
        torch.testing.assert_close(spherical(start, other, half), linear(start, other, half))


def test_traversal_of_a_linear_decoder_adds_multiples_of_one_image() -> None:
    torch.manual_seed(0)
    model = LinearAutoencoder()
    latents = torch.randn(30, 6, 1, 1)
    found = model.decode(traverse(latents[0], latents, 2, torch.tensor([-3.0, 0.0, 3.0])))
    step = 3.0 * latents[:, 2].std(correction=0) * model.net.weight[2].view(3, 4, 4)
    torch.testing.assert_close(found[2] - found[1], step)
    torch.testing.assert_close(found[1] - found[0], step)
    # The middle of a vector's traversal has the channel's mean, that of a map's the image itself.
    expected = latents[0].clone()
    expected[2] = latents[:, 2].mean()
    torch.testing.assert_close(found[1], model.decode(expected[None])[0])


def test_traversal_at_the_central_place_changes_one_number() -> None:
    latents = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = traverse(latents[1], latents, 0, torch.tensor([0.0, 2.0]), central=True)
    assert torch.equal(found[0], latents[1])
    assert (found[1] != latents[1]).nonzero().tolist() == [[0, 2, 2]]
    everywhere = traverse(latents[1], latents, 0, torch.tensor([2.0]))[0] - latents[1]
    torch.testing.assert_close(everywhere[0], (2.0 * latents[:, 0].std(correction=0)).expand(4, 4))


def test_class_means_and_gaussian_are_exact() -> None:
    latents = torch.tensor([1.0, 3.0, 5.0, 100.0]).view(4, 1, 1, 1)
    means = class_means(latents, torch.tensor([7, 7, 2, -1]))
    assert {label: float(mean) for label, mean in means.items()} == {2: 5.0, 7: 2.0}
    vectors = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]]
    )
    mean, root = gaussian(vectors)
    torch.testing.assert_close(root.T @ root, torch.cov(vectors.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mean, vectors.mean(dim=0))


def test_spread_takes_images_of_every_class() -> None:
    assert spread(10, 20) == list(range(10))
    assert spread(1000, 4) == [125, 375, 625, 875]


def test_values_of_a_continuous_model(continuous: Made) -> None:
    values = continuous.exploration.values
    assert list(values) == ["protocol", *PLACES]
    assert json.loads((continuous.page.parent / "exploration.json").read_text()) == values
    assert values["protocol"]["images"]["count"] == len(values["map"]["images"]) == 12
    channels = values["channels"]["channels"]
    kl = [channel["kl_nats"] for channel in channels]
    assert kl == sorted(kl, reverse=True)
    # The posterior's own sum, over images of the command's own loader.
    model, images = continuous.model, values["map"]["images"]
    pixels = torch.cat([ldm_ae.load_image(continuous.images / key, size=16) for key in images])
    with torch.no_grad():
        posterior = model.encode(pixels)
    expected = posterior.regularization()["kl"].mean()
    assert sum(kl) * posterior.mode()[0, 0].numel() == pytest.approx(float(expected), rel=1e-4)
    assert values["codebook"].keys() == {"absent"}
    assert "no codebook" in values["codebook"]["absent"]


def test_patches_show_the_surroundings_of_a_code() -> None:
    levels = torch.arange(2 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(2, 3, 8, 8)
    indices = torch.zeros(2, 4, 4, dtype=torch.int64)
    indices[0, 0, 3] = indices[1, 2, 1] = indices[1, 3, 3] = 5  # two pixels wide
    images = Encoded(
        keys=["one", "two"], latents=torch.zeros(2, 1, 4, 4), log_variances=None, indices=indices,
        labels=torch.tensor([-1, -1]), classes=[], thumbnails=levels, rows=[0, 1], levels=levels,
    )  # fmt: skip
    found = patches(images, 5)
    expected = [levels[0, :, :6, 2:], levels[1, :, 2:, :6], levels[1, :, 2:, 2:]]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_values_of_a_discrete_model(discrete: Made) -> None:
    values = discrete.exploration.values
    assert "without a distribution" in values["uncertainty"]["absent"]
    codes = values["codebook"]["codes"]
    places = 12 * 8 * 8
    assert sum(code["count"] for code in codes) == values["codebook"]["counted"] == places
    assert len(codes) == values["codebook"]["used"][0]
    assert values["samples"]["samples"][0]["kind"] == "Independent codes"


def test_maps_of_codes_are_added_from_coarse_to_fine(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HierarchicalVQAutoencoder(
        quantizer=VQ(8, 3), maps=3, block_out_channels=(16,), layers_per_block=1, norm_num_groups=4,
        initialization="thumbnail",
    )  # fmt: skip
    for number, quantizer in enumerate(model.quantizers):
        quantizer.state_dict()["embedding.weight"].normal_(std=2.0 / 2**number)
    images = write_class_folders(tmp_path / "images")
    values = ldm_ae.explore(model, images, size=16, limit=2, device="cpu").values["maps"]
    # log2 8 bits for each of 4², 8² and 16² codes of 16² pixels.
    assert [row["bits_per_pixel"] for row in values["reconstructions"]] == pytest.approx([3 / 16, 15 / 16, 63 / 16])
    pixels = torch.cat([ldm_ae.load_image(images / key, size=16) for key in values["images"]])
    with torch.no_grad():
        decoded = model.decode(model.encode(pixels).mode())
    assert values["reconstructions"][-1]["psnr"] == pytest.approx(psnr(decoded, pixels).tolist(), abs=1e-4)
    maps = [torch.randn(2, 3, 1 << i, 2 << i) for i in range(3)]
    kept = split_maps(without_finer_maps(pack_maps(maps), 3, 1), 3)
    assert torch.equal(kept[0], maps[0])
    for own, given in zip(kept[1:], maps[1:], strict=True):
        torch.testing.assert_close(own, given.mean(dim=(0, 2, 3))[:, None, None].expand_as(own))


def test_prior_of_the_model_is_sampled(discrete: Made) -> None:
    owner = discrete.exploration.protocol["model"]["hash"]
    prior = GatedPixelCNN(codebook_size=8, shape=(8, 8), classes=0, width=8, depth=1, dropout=0.0).eval()
    found = ldm_ae.explore(
        discrete.model, discrete.images, size=16, limit=2, prior=SavedPrior(prior, owner, "a prior"), device="cpu"
    )
    assert found.values["samples"]["samples"][0]["kind"] == "The prior's samples"
    with pytest.raises(UserError, match="trained on the codes of another model"):
        ldm_ae.explore(discrete.model, discrete.images, size=16, limit=2, prior=SavedPrior(prior, "other", ""))


def test_prior_of_a_continuous_model_is_refused(continuous: Made) -> None:
    prior = GatedPixelCNN(codebook_size=8, shape=(8, 8), classes=0, width=8, depth=1, dropout=0.0)
    with pytest.raises(UserError, match="no effect on a model without a codebook"):
        ldm_ae.explore(continuous.model, continuous.images, size=16, limit=2, prior=SavedPrior(prior, "", ""))


def test_vectors_have_bars_and_samples_of_the_normal_distribution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = write_class_folders(tmp_path / "images")
    found = ldm_ae.explore(LinearAutoencoder(), images, device="cpu")
    values, content = found.values, {section.place: section.content for section in found.sections}
    assert content["channels"].count('<svg class="values"') == 4
    assert values["samples"]["samples"][0]["kind"] == "z ~ N(0, 1)"
    assert values["traversals"]["places"] == "vector"
    assert values["arithmetic"]["classes"] == ["cats", "dogs"]
    # Samples of the posterior differ by its standard deviation times the rows of an orthogonal decoder.
    assert values["uncertainty"]["images"][0]["latent_std"] == pytest.approx(0.5)
    levels = 0.5 * 127.5 * math.sqrt(6 / (3 * 4 * 4))
    assert values["uncertainty"]["images"][0]["pixel_std_levels"] == pytest.approx(levels, rel=0.3)


@pytest.mark.slow
def test_page_is_the_same_for_a_seed_and_other_draws_for_another(continuous: Made, tmp_path: Path) -> None:
    pages = [
        ldm_ae.explore(continuous.model, continuous.images, size=16, seed=seed, device="cpu").write(tmp_path / name)
        for name, seed in (("same", 0), ("other", 1))
    ]
    assert pages[0].read_text() == continuous.page.read_text()
    assert pages[1].read_text() != continuous.page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_few_images_without_labels_leave_out_what_needs_more(tmp_path: Path, count: int) -> None:
    images = write_class_folders(tmp_path / "images") / "cats"
    torch.manual_seed(0)
    values = ldm_ae.explore(KLAutoencoder(**SMALL), images, size=16, limit=count, device="cpu").values
    assert "absent" in values["map"]
    assert ("absent" in values["interpolation"]) is (count < 2)
    assert "needs three images" in values["arithmetic"]["absent"]
