"""The georeferences of a source's TIFF files, for the files of their reconstructions."""

from __future__ import annotations

from collections import Counter

from ldm_ae.data import BadImage, BucketTransform, ImageTransform, Source, WholeTransform
from ldm_ae.images.georeference import ExtraTag, read_georeference


class Georeferences:
    """Georeferences by the key of the image, with an account of what becomes of them.

    Args:
        source: The images.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._places = {source.key(index): index for index in range(len(source))}
        self._kept = 0
        self._lost: Counter[str] = Counter()

    def tags(
        self, transform: ImageTransform | BucketTransform | WholeTransform, key: str, size: tuple[int, int],
        original_size: tuple[int, int] | None = None,
    ) -> list[ExtraTag]:  # fmt: skip
        """Return the tags of a transformed image; none where its file has no georeference, or one that is lost.

        Args:
            transform: The transform that the image went through, with a central crop.
            key: Its key.
            size: Its (height, width) after it.
            original_size: Its (height, width) before it, if these are known.
        """
        if key not in self._places:
            self._lost["the images lack the file"] += 1
            return []
        try:
            with self._source.open_image(self._places[key]) as file:
                found = read_georeference(file)
        except (BadImage, OSError) as error:
            self._lost[f"a file cannot be read ({error})"] += 1
            return []
        if found is None:
            return []
        if found.lost is None and original_size not in (None, found.size[::-1]):
            found = found._replace(lost="the file has another size than the encoded one")
        if found.lost is not None:
            self._lost[found.lost] += 1
            return []
        self._kept += 1
        return found.moved(transform.window(found.size), size[::-1])

    def lines(self) -> list[str]:
        """Return what the user needs to know."""
        kept = [f"georeferences kept: {self._kept}"] if self._kept else []
        return kept + [f"georeferences dropped: {count}, {why}" for why, count in self._lost.items()]
