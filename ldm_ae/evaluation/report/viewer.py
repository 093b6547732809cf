"""The images of a page, which a click or the Enter key enlarges: a slider or a blink compares the original with each
other image of its group. Style and script stand in the page, so that it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from ldm_ae.evaluation.report.page import LARGEST_PNG, data_uri

VIEWER_STYLE = Path(__file__).with_name("viewer.css").read_text(encoding="utf-8").replace("\n", "")
VIEWER_SCRIPT = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")


def content_policy(*scripts: str) -> str:
    """Return the element of the head of a page whose images are data URIs: browsers run these scripts, which stand in
    the page, and no other, and load nothing."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii") for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        f"style-src 'unsafe-inline'; script-src {allowed}\">"
    )


CONTENT_POLICY = content_policy(VIEWER_SCRIPT)
"""Element of the head of a page that has no script but the viewer's."""

VIEWER = f"""<dialog id="viewer" aria-label="Enlarged image">
<header><b data-part="title"></b>
<label>Left <select data-part="against"></select></label>
<div data-part="choices" role="group" aria-label="Compare with"></div>
<button type="button" data-part="blink" aria-pressed="false">Blink</button>
<button type="button" data-part="difference" aria-pressed="false">Difference</button>
<div class="zoom" role="group" aria-label="Zoom">
<button type="button" data-part="smaller" aria-label="Smaller">−</button>
<output data-part="factor"></output><button type="button" data-part="larger" aria-label="Larger">+</button></div>
<button type="button" data-part="previous" aria-label="Previous image">‹</button>
<button type="button" data-part="next" aria-label="Next image">›</button>
<button type="button" data-part="close" aria-label="Close">✕</button></header>
<div class="stage" data-part="stage"><div class="layers" data-part="layers"></div>
<span data-part="left"></span><span data-part="right"></span><i class="line"></i>
<input type="range" data-part="slider" min="0" max="100" step="0.5" value="50"></div>
<p>Drag, or press ← and →, to move the line. Scroll, pinch or press + and − to zoom, and drag to move. B blinks, D shows
the difference ×4, N and P change the image, 1 to 9 what is compared, Esc closes.</p>
</dialog>
<script>{VIEWER_SCRIPT}</script>"""
"""Elements that end the body of a page with groups of pictures."""


def views(title: str, cells: Sequence[str], *, css: str = "") -> str:
    """Return a group of images under a title, from the cells of `view`; the first is the original."""
    return f'<div class="{f"views {css}".strip()}" data-title="{escape(title)}">{"".join(cells)}</div>'


def view(
    label: str, picture: Image.Image, *, caption: str | None = None, pixels: bool = False,
    largest_png: int = LARGEST_PNG,
) -> str:  # fmt: skip
    """Return an image inside the page.

    Args:
        label: Its name in the enlarged comparison, and what stands in place of an image that is not shown.
        picture: The image.
        caption: The HTML under it; None is the label.
        pixels: Whether its pixels are shown as squares.
        largest_png: Number of pixels up to which it is PNG; larger ones are WebP.
    """
    css = ' class="pixels"' if pixels else ""
    source = data_uri(picture, largest_png=largest_png)
    return (
        f'<div><button type="button" class="view" data-label="{escape(label)}">'
        f'<img{css} src="{source}" alt="{escape(label)}" width="{picture.width}" height="{picture.height}">'
        f"</button><span>{escape(label) if caption is None else caption}</span></div>"
    )
