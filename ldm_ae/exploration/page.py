"""The page of an exploration: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm_ae.evaluation.report.details_page import DETAILS_STYLE
from ldm_ae.evaluation.report.page import count, document
from ldm_ae.evaluation.report.plots import PLOT_STYLE
from ldm_ae.evaluation.report.protocol_page import protocol_table
from ldm_ae.evaluation.report.viewer import VIEWER, VIEWER_SCRIPT, VIEWER_STYLE, content_policy
from ldm_ae.exploration.settings import Section

_FOLDER = Path(__file__).parent
PAGE_STYLE = (_FOLDER / "explore.css").read_text(encoding="utf-8").replace("\n", "")
FRAMES_SCRIPT, MAP_SCRIPT = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("frames.js", "map.js"))


def render(sections: Sequence[Section], protocol: dict[str, Any]) -> str:
    """Return the page. All data is escaped; nothing is loaded from elsewhere."""
    model, images = protocol["model"], protocol["images"]
    name = escape(str(model["name"]))
    lead = (
        f"{count(images['count'], 'image')} of {escape(str(images['source']))}, encoded by {escape(model['class'])}: "
        f"latents of {model['latent_channels']} channels, downsample factor {model['downsample_factor']}, "
        f"{model['parameters'] / 1e6:.1f} M parameters."
    )
    facts = "".join(
        f"<li><span>{escape(fact.label)}</span><strong>{escape(fact.value)}</strong><small>{escape(fact.note)}</small></li>"
        for section in sections
        for fact in section.facts
    )
    filled = [(section.place, section.title, section.content) for section in sections]
    return document(
        f"Latents of {name}", kicker="Latent space explorer", heading=f"The latents of {name}", lead=lead,
        top=f'<ul class="headline">{facts}</ul>' if facts else "",
        sections=[*filled, ("protocol", "Protocol", protocol_table(protocol))],
        policy=content_policy(VIEWER_SCRIPT, FRAMES_SCRIPT, MAP_SCRIPT),
        style=VIEWER_STYLE + PLOT_STYLE + DETAILS_STYLE + PAGE_STYLE,
        end=f"{VIEWER}<script>{FRAMES_SCRIPT}</script><script>{MAP_SCRIPT}</script>",
    )  # fmt: skip
