"""Results that are not single numbers, in the report of an evaluation and in the page of a comparison."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ldm_ae.evaluation import evaluate
from ldm_ae.evaluation.metrics.channel_correlation import ChannelCorrelation
from ldm_ae.evaluation.metrics.spectrum import LatentSpectrum
from ldm_ae.evaluation.report import write as report
from ldm_ae.evaluation.report.details_page import (
    correlation,
    correlation_matrices,
    other_details,
    spectra,
    text_tables,
)
from ldm_ae.models import KLAutoencoder
from tests.evaluation.stubs import loader
from tests.pages import DETAILS, Page

OTHER = {**DETAILS, "text_error": {"8": {"written": ["ab c", "d"], "read": ["xy c", "d"]}}}


def test_text_marks_runs_of_wrong_letters_of_each_model() -> None:
    html = text_tables([("one", DETAILS), ("two", OTHER)])
    Page(html)
    assert html.count('class="wrong"') == 2
    assert '<code>a<span class="wrong">&lt;</span> c</code>' in html
    assert '<code><span class="wrong">xy</span> c</code>' in html
    assert "written" in html
    assert html.count("8 px") == 1
    assert "16 px" in html  # which the second model lacks
    assert html.index("c0") < html.index("c1")


def test_parts_without_results_are_empty() -> None:
    for models in ([], [("one", {})], [("one", {"text_error": {}})]):
        assert text_tables(models) == correlation_matrices(models) == other_details(models) == ""
        assert spectra(models).empty
    assert correlation({}) is None


def test_spectrum_and_correlation_are_those_of_the_details() -> None:
    (series,) = spectra([("without", {}), ("one", DETAILS)]).series
    assert (list(series.x), list(series.y), series.colour) == ([0.1, 0.5], [4.0, 0.25], 1)
    matrix = correlation(DETAILS)
    assert matrix is not None
    assert torch.equal(matrix, torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
    assert correlation_matrices([("one", DETAILS)]).count("<img") == 1


def test_other_results_are_listed_with_their_metric_and_escaped() -> None:
    html = other_details([("<one>", DETAILS), ("two", {"plugin": {"found": "<b>", "long": list(range(99))}})])
    page = Page(html)
    assert "linear probe: accuracies of folds" in page.text
    assert "0.5000, 0.7500" in page.text
    assert "plugin: found" in page.text
    assert "<b>" in page.text
    assert "<one>" in page.text
    assert "long" not in page.text
    assert "text" not in page.text  # it has its own table
    assert Page(other_details([("one", DETAILS)])).text.count("one") == 0  # one model needs no name


@pytest.mark.parametrize("details", [True, False])
def test_report_has_details_where_there_are_some(tiny_model: KLAutoencoder, details: bool) -> None:
    found = evaluate(
        tiny_model, loader(2, 2), source="pictures", transform_description={}, model_name="a model", device="cpu",
        metrics=[LatentSpectrum(), ChannelCorrelation()],
    )  # fmt: skip
    page = report.render(replace(found, details=found.details | DETAILS if details else {}))
    sections = [section.get("id") for section in Page(page).all("section")]
    assert ("details" in sections) == details
    for words in ("Spectrum of the latents", "Correlation between channels", "Other results", "Rendered text"):
        assert (words in page) == details
    assert report.metrics(found)["details"]["latent_spectrum"]["power"]  # type: ignore[index]
