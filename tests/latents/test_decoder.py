"""Images out of stores and autoencoders: the right pixels under safe names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_ae.core.errors import UserError
from ldm_ae.data import EvaluationLoader, ImageTransform, RawImage, Source, open_source
from ldm_ae.latents import LatentDataset, decode_store, encode_images, reconstruct_images
from ldm_ae.latents.decoding import output_names
from ldm_ae.models import KLAutoencoder
from tests.latents.helpers import encode


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def pixels(model: KLAutoencoder, latents: torch.Tensor) -> np.ndarray:
    """(H, W, 3) 0..255 of one image's latents."""
    with torch.no_grad():
        image = model.decode(latents[None])[0]
    return ((image.clamp(-1, 1) + 1) / 2 * 255).round().permute(1, 2, 0).int().numpy()


@pytest.mark.parametrize("latents", ["stored", "mode"])
def test_store_is_decoded_to_images(latents: str, tiny_model: KLAutoencoder, store: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    count = decode_store(
        tiny_model, store, tmp_path / "out", latents=latents, batch_size=5, device="cpu",  # type: ignore[arg-type]
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert count == 12
    assert seen == [(5, 12), (10, 12), (12, 12)]
    data = LatentDataset(store, draw=latents)  # type: ignore[arg-type]
    for item in (data[0], data[7]):
        # Rounding to 8 bits may tip either way when float32 sums are reordered.
        assert abs(read(tmp_path / "out" / item["key"]) - pixels(tiny_model, item["latents"])).max() <= 1
    assert len(list((tmp_path / "out").rglob("*.png"))) == 12


def test_images_are_reconstructed(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    source, transform = open_source(image_folder), ImageTransform(size=32)
    written = reconstruct_images(tiny_model, source, tmp_path / "out", transform=transform, batch_size=5, device="cpu")
    assert written.images == 12
    batch = next(iter(EvaluationLoader(source, transform, batch_size=12)))
    with torch.no_grad():
        mode = tiny_model.encode(batch.pixel_values).mode()
    for i in (0, 11):
        # Rounding to 8 bits may tip either way when float32 sums are reordered.
        assert abs(read(tmp_path / "out" / batch.keys[i]) - pixels(tiny_model, mode[i])).max() <= 1


def test_decoding_with_another_model_requires_permission(
    tiny_model: KLAutoencoder, store: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.last_layer.mul_(0.5)
    with pytest.raises(UserError, match="made by another model"):
        decode_store(tiny_model, store, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    assert decode_store(tiny_model, store, tmp_path / "out", device="cpu", allow_other_model=True) == 12
    other = KLAutoencoder(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=2)
    with pytest.raises(UserError, match="has 4 channels, the model has 2"):
        decode_store(other, store, tmp_path / "more", device="cpu", allow_other_model=True)


def test_decoding_does_not_overwrite_existing_files(
    tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in image_folder.rglob("*.png")}
    with pytest.raises(UserError, match="is not empty"):
        decode_store(tiny_model, store, image_folder, device="cpu")
    assert {path: path.read_bytes() for path in image_folder.rglob("*.png")} == before
    with pytest.raises(UserError, match="is a file"):
        decode_store(tiny_model, store, next(iter(before)), device="cpu")


NAMES = {
    "cats/001.jpg": "cats/001.png",
    "cats/001.gif": "cats/001-2.png",
    "CATS/001.jpg": "CATS/001-2.png",
    "../evil": "evil.png",
    "/etc/passwd": "etc/passwd.png",
    "..\\..\\evil": "evil-2.png",
    "C:\\Windows\\x.bmp": "C_/Windows/x.png",
    "a/../../b.tar.gz": "a/b.tar.png",
    "..": "image.png",
    "": "image-2.png",
    "new\nline.png": "new_line.png",
    "v1.0/photo": "v1.0/photo.png",
}


def test_output_names_are_unique_and_case_insensitive() -> None:
    names = output_names(NAMES)
    expected = NAMES | {"CATS/001.jpg": "CATS/001-3.png"}
    assert names == expected
    assert len({name.lower() for name in names.values()}) == len(NAMES)
    for folder, inside in (("x.png", "x.png/y.jpg"), ("x.png/y.jpg", "x.png")):  # one is a file where one is a folder
        both = list(output_names([folder, inside]).values())
        assert len(set(both)) == 2
        assert not any(a != b and b.startswith(f"{a}/") for a in both for b in both)
    long = output_names(["k" * 5000])["k" * 5000]
    assert len(long.encode()) <= 255


class Hostile(Source):
    """Images whose keys lead out of any folder."""

    name, accepts = "hostile", "nothing"
    keys = ("../evil", "../../evil.png", "/tmp/ldm_ae_evil.png", "good.png")

    def __init__(self, picture: bytes):
        self.picture = picture

    @classmethod
    def open(cls, location: str) -> Source | None:
        return None

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]

    def __getitem__(self, index: int) -> RawImage:
        return RawImage(self.keys[index], self.picture)


def test_hostile_keys_stay_inside_the_output_folder(
    tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path
) -> None:
    source = Hostile((image_folder / "dogs/000.png").read_bytes())
    transform = ImageTransform(size=32)
    root = tmp_path / "deep/er"
    encode_images(tiny_model, source, root / "store", transform=transform, device="cpu")
    before = sorted(path for path in tmp_path.rglob("*"))
    decode_store(tiny_model, root / "store", root / "out", device="cpu")
    reconstruct_images(tiny_model, source, root / "out2", transform=transform, device="cpu")
    new = sorted(set(tmp_path.rglob("*")) - set(before))
    assert all(path.is_relative_to(root / "out") or path.is_relative_to(root / "out2") for path in new)
    assert len(list((root / "out").rglob("*.png"))) == len(list((root / "out2").rglob("*.png"))) == 4
    assert not Path("/tmp/ldm_ae_evil.png").exists()


def test_encode_then_decode_round_trip(tiny_model: KLAutoencoder, image_folder: Path, tmp_path: Path) -> None:
    """A store of modes decodes to the images that reconstruct writes."""
    encode(tiny_model, image_folder, tmp_path / "store", latents="mode")
    decode_store(tiny_model, tmp_path / "store", tmp_path / "a", device="cpu")
    reconstruct_images(
        tiny_model, open_source(image_folder), tmp_path / "b", transform=ImageTransform(size=32), device="cpu"
    )
    for path in (tmp_path / "a").rglob("*.png"):
        # Other batch sizes reorder float32 sums, which may tip the rounding to 8 bits.
        assert abs(read(path) - read(tmp_path / "b" / path.relative_to(tmp_path / "a"))).max() <= 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_non_finite_reconstructions_are_not_written(
    precision: str, tiny_model: KLAutoencoder, image_folder: Path, store: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_model.net.decoder.conv_out.bias[0] = float("nan")
    words = r"of (cats|dogs)/00\d\.png, .*/00\d\.png, .*/00\d\.png is not finite in " + precision
    with pytest.raises(UserError, match=words):
        decode_store(tiny_model, store, tmp_path / "a", device="cpu", batch_size=3, precision=precision,
                     allow_other_model=True)  # fmt: skip
    with pytest.raises(UserError, match=words):
        reconstruct_images(
            tiny_model, open_source(image_folder), tmp_path / "b", transform=ImageTransform(size=32), device="cpu",
            batch_size=3, precision=precision,
        )  # fmt: skip
    assert not [path for folder in "ab" for path in (tmp_path / folder).rglob("*.png")]
