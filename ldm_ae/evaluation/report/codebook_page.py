"""The report's section on the codes of a discrete model."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from ldm_ae.evaluation.metrics.codebook import EDGES, CodebookSummary
from ldm_ae.evaluation.report.page import bars, table
from ldm_ae.evaluation.report.pictures import code_picture
from ldm_ae.evaluation.report.viewer import view, views


def codebook_section(found: CodebookSummary | None) -> str:
    """Return the codes in use and their frequencies as HTML; an empty string for a model without codes."""
    if found is None:
        return ""
    line = found.line()
    pictures = "".join(f"<figure>{_picture(found, i, counts)}</figure>" for i, counts in enumerate(found.counts))
    codes = found.histogram()
    names = ["never", f"below {EDGES[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(EDGES)),
             f"{EDGES[-1]:g} or more"]  # fmt: skip
    ends = ("never", f"{EDGES[-1]:g} times the uniform frequency or more")
    return (
        f"<p>{line[0].upper() + line[1:]}.</p>"
        "<p>Each pixel is a code, in the order of their numbers, in rows; dark ones never occur, lighter ones occur "
        "more often, on a logarithmic scale around the uniform frequency.</p>"
        f'<div class="small-multiples">{pictures}</div>'
        "<h3>How often codes occur</h3><p>Codes by how often they occur, as a multiple of the frequency that each "
        f'would have under uniform use.</p><div class="wide">{bars(codes, ends, "Codes by how often they occur")}</div>'
        + table(("Multiple of the uniform frequency", "Codes"),
                [(n, f"{c:,}") for n, c in zip(names, codes, strict=True)], numbers=(1,), css="narrow")
    )  # fmt: skip


def _picture(found: CodebookSummary, level: int, counts: Tensor) -> str:
    label = f"codes of {found.part} {level}"
    cell = view(label, code_picture(counts), caption=_of_level(found, level), pixels=True)
    return views(label, [cell])


def _of_level(found: CodebookSummary, level: int) -> str:
    words = f"{int(found.used[level]):,} of {found.size:,} codes, {float(found.entropies[level]):.2f} bits per code"
    return words if found.levels == 1 else f"{found.part} {level}: {words}"
