"""Packages that add to ldm_ae by the entry point group `ldm_ae.plugins`, as pip would have installed them."""

import textwrap
from pathlib import Path


def write_plugin(site: Path, name: str, content: str) -> Path:
    """Write a package of one module with its metadata into the folder `site`, to be put on `sys.path`."""
    metadata = site / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(textwrap.dedent(content))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[ldm_ae.plugins]\n{name} = {name}\n")
    return site
