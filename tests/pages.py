"""The report and the quickstart's page, made from small pictures, and what a page has in it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from ldm_ae.commands._quickstart_page import Contestant, save_images, write_page
from ldm_ae.evaluation import Evaluation, comparison_grid, evaluate, write_report
from ldm_ae.evaluation.metrics.interface import JSON
from tests.evaluation.stubs import IdentityAutoencoder, MeanDistance, PixelFeatures, loader, pictures

SIZE = 64
VOID = {"meta", "img", "br", "rect", "input"}


DETAILS: dict[str, dict[str, JSON]] = {
    "latent_spectrum": {"cycles_per_latent": [0.1, 0.5], "power": [4.0, 0.25]},
    "channel_correlation": {"correlations": [[1.0, -0.5], [-0.5, 1.0]]},
    "text_error": {
        "8": {"written": ["ab c", "d"], "read": ["a< c", "d"]},
        "16": {"written": ["Sphinx OF black QUARTZ judge MY vow 0123456789 "] * 3,
               "read": ["Sphinx OF black QUARTZ judge MY vow 0123456789 "] * 3},
    },
    "linear_probe": {"classes": 2, "accuracies_of_folds": [0.5, 0.75]},
}  # fmt: skip
"""Results that are not single numbers."""


class Page(HTMLParser):
    """Checks the nesting of a page and collects its elements and its text, without style and script."""

    def __init__(self, text: str):
        super().__init__()
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_pages(folder: Path) -> dict[str, Path]:
    """Write a report with long names and the page of a finished quickstart, and return their paths."""
    quickstart = folder / "quickstart"
    contestants = [
        Contestant(
            name=name, title=title, origin="made by a test", folder=place, report=report, numbers=4096,
            evaluation=_evaluation(offset, ["chelsea.png", "a_folder/of-two_words.png"]),
        )
        for name, title, place, report, offset in (
            ("shipped-model", "The pretrained model", "shipped", "evaluation-shipped", 0.05),
            ("trained from scratch", "The model trained here", "reconstructed", "evaluation", 0.2),
        )
    ]  # fmt: skip
    for contestant in contestants:
        save_images(quickstart, contestant)
        write_report(contestant.evaluation, quickstart / contestant.report)
    (quickstart / "run" / "samples").mkdir(parents=True)
    grid = comparison_grid(pictures(8), pictures(8))
    grid.save(quickstart / "run" / "samples" / "step-00001500.png")
    grid.save(quickstart / "sample-0.png")
    command = f"ldm-ae train --config /a/long/path/{'of_folders/' * 8}quickstart.yaml --data.train FOLDER"
    write_page(
        quickstart, contestants, contents=[(quickstart / "run", "the training run")],
        commands=[("Train:", command)], lesson="Longer training gives more.",
    )  # fmt: skip
    many = _evaluation(0.1, [f"{'a_very_long_name_' * 8}{i}.png" for i in range(6)])
    return {
        "report": write_report(replace(many, details=DETAILS), folder / "report"),
        "quickstart": quickstart / "index.html",
    }


def _evaluation(offset: float, keys: list[str]) -> Evaluation:
    return evaluate(
        IdentityAutoencoder(offset), loader(len(keys), size=SIZE, keys=keys), source="pictures of a test",
        transform_description={"version": 1, "size": [SIZE, SIZE], "crop": "center", "flip": False},
        model_name="a model", perceptual=MeanDistance(), features=PixelFeatures(), device="cpu", pictures=2,
    )  # fmt: skip
