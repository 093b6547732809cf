"""Real photos from the wheels of scikit-image and scikit-learn, for use without a network."""

from __future__ import annotations

from pathlib import Path

from ldm_ae.core.errors import UserError
from ldm_ae.core.resources import installed_folder
from ldm_ae.data.sources.interface import RawImage, Source
from ldm_ae.data.sources.tree import Tree

_FOLDERS = {"scikit-image": ("skimage", "data"), "scikit-learn": ("sklearn", "datasets/images")}
# Split by image, with the two views of one motorcycle on the same side. Three ordinary photos are held out (a cat, a
# flower, a rocket on its pad); the microscope, the retina and the telescope are for training.
_SPLITS = {
    "train": (
        "scikit-image/astronaut.png",
        "scikit-image/coffee.png",
        "scikit-image/hubble_deep_field.jpg",
        "scikit-image/ihc.png",
        "scikit-image/motorcycle_left.png",
        "scikit-image/motorcycle_right.png",
        "scikit-image/retina.jpg",
        "scikit-learn/china.jpg",
    ),
    "heldout": ("scikit-image/chelsea.png", "scikit-image/rocket.jpg", "scikit-learn/flower.jpg"),
}


class PhotosSource(Source):
    """The bundled photos of one split; the key is `wheel/file`."""

    name = "photos"
    accepts = "photos:train or photos:heldout"

    def __init__(self, split: str) -> None:
        self._keys = _SPLITS[split]
        folders = {wheel: _find_folder(wheel, *place) for wheel, place in _FOLDERS.items()}
        self._paths = [folders[wheel] / name for wheel, _, name in (key.partition("/") for key in self._keys)]
        missing = [str(path) for path in self._paths if not path.is_file()]
        if missing:
            raise UserError(f"this installation has no {missing[0]}; pip install --force-reinstall 'ldm_ae[offline]'")

    @classmethod
    def open(cls, location: str, tree: Tree | None = None) -> PhotosSource | None:  # noqa: ARG003
        """See `Source.open`."""
        scheme, colon, split = location.partition(":")
        if scheme != "photos" or not colon or Path(location).exists():  # a folder `photos` is the user's
            return None
        if split not in _SPLITS:
            raise UserError(
                f"there are no photos '{location}'; there are " + " and ".join(f"photos:{s}" for s in _SPLITS)
            )
        return cls(split)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """Return wheel and file name."""
        return self._keys[index]

    def __getitem__(self, index: int) -> RawImage:
        return RawImage(self._keys[index], self._paths[index].read_bytes())


def _find_folder(wheel: str, package: str, folder: str) -> Path:
    """Return a folder in an installed package."""
    if (found := installed_folder(package)) is None:
        raise UserError(f"the bundled photos need {wheel}, which is missing; pip install 'ldm_ae[offline]'")
    return found / folder
