"""The page of a quickstart: each held-out photo beside its reconstructions by the shipped and the newly trained model.

The images are files beside the page, so that it needs no network and each can be opened alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ldm_ae.evaluation import Evaluation
from ldm_ae.evaluation.report.page import STYLE, table
from ldm_ae.evaluation.report.pictures import levels_image
from ldm_ae.io.files import writing
from ldm_ae.latents.decoding import output_names

ORIGINALS = "originals"
SCORES = {"psnr": ("PSNR", "{:.1f} dB"), "ssim": ("SSIM", "{:.3f}")}
"""Label and format of a score, by its name. Every other score is a perceptual distance."""

_TITLES = {"chelsea": "a cat", "rocket": "a rocket on its pad", "flower": "a flower"}
_OWN_STYLE = """
.photo{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,16rem),1fr));margin:0 0 1.5rem}
.photo figure,.samples figure{margin:0}
table.narrow td,table.narrow th{padding-right:1.5rem}table small{display:block;color:var(--soft)}
.photo figcaption span{display:block;font-variant-numeric:tabular-nums}
.samples{display:flex;flex-wrap:wrap;gap:.75rem}.samples figure{flex:0 1 16rem}
.progress img{image-rendering:pixelated}
a{color:var(--mark)}
p.lead{font-size:1.1rem;color:var(--ink)}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem;overflow-x:auto;
margin:.3rem 0 1rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.35rem 1.5rem;font-size:.92rem}
dt{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.88em}dd{margin:0;color:var(--soft)}
@media(max-width:40rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.6rem}}
""".strip().replace("\n", "")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the two models and its reconstructions of the held-out photos."""

    name: str
    origin: str
    """Short description of where the model comes from."""
    folder: str
    """Folder of its reconstructions, inside the quickstart's folder."""
    report: str
    """Folder of its report, inside the quickstart's folder."""
    numbers: int
    """Number of values in the latents of one photo."""
    evaluation: Evaluation


def save_images(folder: Path, contestant: Contestant) -> None:
    """Write the originals and the reconstructions that the evaluation kept, as PNG files named by key."""
    images = {image.row.key: image for image in contestant.evaluation.first}
    for key, name in output_names(images).items():
        for place, levels in (
            (ORIGINALS, images[key].original),
            (contestant.folder, images[key].reconstruction),
        ):
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            levels_image(levels).save(path)


def score_names(evaluation: Evaluation) -> list[str]:
    """Return the names of PSNR, SSIM and the perceptual distance, in this order."""
    others = [name for name in evaluation.images[0].scores if f"bicubic_{name}" in evaluation.images[0].scores]
    return [*SCORES, *(name for name in others if name not in SCORES)]


def score_text(name: str, value: float) -> str:
    """Format a score with its unit."""
    return SCORES[name][1].format(value) if name in SCORES else f"{value:.3f}"


def score_label(name: str) -> str:
    """Return the display name of a score."""
    return SCORES[name][0] if name in SCORES else "Perceptual distance"


def write_page(
    folder: Path,
    contestants: Sequence[Contestant],
    *,
    contents: Sequence[tuple[Path, str]],
    commands: Sequence[tuple[str, str]],
    lesson: str = "",
) -> None:
    """Write `index.html` with the results that exist so far.

    Args:
        folder: Folder of the quickstart, which holds the grids of the run and the samples of the pipeline.
        contestants: The shipped model, then the newly trained one once it exists.
        contents: Paths of the results, with a short description of each.
        commands: Commands to run next, each after a short description.
        lesson: The gain from longer training, in a sentence, once it is measured.
    """
    waiting = "" if len(contestants) > 1 else (
        "<p>The model that this command trains appears here after its training. Reload the page then.</p>"
    )  # fmt: skip
    page = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>ldm_ae quickstart</title><style>{STYLE}{_OWN_STYLE}</style></head>
<body>
<p class="kicker">ldm_ae quickstart</p>
<h1>Photos through {contestants[0].numbers:,} numbers, and back</h1>
<p class="lead">An autoencoder encodes a photo as a small grid of numbers, its latents, and decodes them again. A
latent diffusion model works on the latents alone. None of the photos was in a training set. Higher PSNR and
SSIM are better; a lower perceptual distance is better.</p>
{waiting}
{_photos(contestants)}
<h2>Mean scores on these photos</h2>
{_scores(contestants)}
{f"<h2>What longer training gives</h2><p>{lesson}</p>" if lesson else ""}
{_progress(folder)}
{_samples(folder)}
<h2>Results</h2>
<dl>{_contents(folder, contents)}</dl>
<h2>Next steps</h2>
{"".join(f"<p>{escape(text)}</p><pre><code>{escape(command)}</code></pre>" for text, command in commands)}
</body>
</html>
"""
    with writing(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def _photos(contestants: Sequence[Contestant]) -> str:
    names = output_names(row.key for row in contestants[0].evaluation.images)
    height, width = contestants[0].evaluation.first[0].original.shape[-2:]
    rows = []
    for number, name in enumerate(names.values()):
        photo = _TITLES.get(Path(name).stem, Path(name).stem)
        figures = [_figure(f"{ORIGINALS}/{name}", f"Original: {photo}", [f"{width} × {height} × 3 numbers"])]
        for contestant in contestants:
            scores = contestant.evaluation.images[number].scores
            words = [f"{score_label(n)} {score_text(n, scores[n])}" for n in score_names(contestant.evaluation)]
            title = f"{contestant.name}, {contestant.origin}"
            figures.append(_figure(f"{contestant.folder}/{name}", title, words, alt=f"{photo}, {title}"))
        rows.append(f'<div class="photo">{"".join(figures)}</div>')
    return "\n".join(rows)


def _figure(path: str, title: str, lines: Sequence[str], *, alt: str = "") -> str:
    words = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return (
        f'<figure><a href="{escape(path)}"><img src="{escape(path)}" alt="{escape(alt or title)}" loading="lazy"></a>'
        f"<figcaption><b>{escape(title)}</b>{words}</figcaption></figure>"
    )


def _scores(contestants: Sequence[Contestant]) -> str:
    rows = [["Numbers in the latents of a photo", *(f"{c.numbers:,}" for c in contestants)]]
    for name in score_names(contestants[0].evaluation):
        better = "higher is better" if name in SCORES else "lower is better"
        label = f"{score_label(name)} <small>{escape('' if name in SCORES else f'{name}, ')}{better}</small>"
        rows.append([label, *(score_text(name, c.evaluation.scores[name]) for c in contestants)])
    rows += [
        [f"{score_label(name)} of a bicubic thumbnail of equally many numbers",
         *(score_text(name, c.evaluation.scores[f"bicubic_{name}"]) for c in contestants)]
        for name in score_names(contestants[0].evaluation) if name != "ssim"
    ]  # fmt: skip
    rows.append(
        ["Error maps, latents, all scores", *(f'<a href="{c.report}/report.html">report</a>' for c in contestants)]
    )
    header = ["", *(f"{escape(c.name)}<br>{escape(c.origin)}" for c in contestants)]
    return table(header, rows, numbers=tuple(range(1, len(header))), css="narrow")


def _progress(folder: Path) -> str:
    grids = sorted((folder / "run" / "samples").glob("step-*.png"))
    figures = [
        _figure(
            path.relative_to(folder).as_posix(), f"After {int(path.stem.split('-')[1]):,} steps",
            ["Crops of training photos above, their reconstructions below"],
        )
        for path in grids
    ]  # fmt: skip
    if not figures:
        return ""
    return f'<h2>The training from scratch</h2><div class="progress">{"".join(figures)}</div>'


def _samples(folder: Path) -> str:
    paths = sorted(folder.glob("sample-*.png"))
    if not paths:
        return ""
    figures = "".join(_figure(path.name, f"Sample {i + 1}", []) for i, path in enumerate(paths))
    return (
        "<h2>Samples of a diffusion model on these latents</h2><p>It was trained on the latent store for some seconds, "
        "which only shows that all parts work together: its samples are texture, not photos.</p>"
        f'<div class="samples">{figures}</div>'
    )


def _contents(folder: Path, contents: Sequence[tuple[Path, str]]) -> str:
    return "".join(
        f'<dt><a href="{escape(path.relative_to(folder).as_posix())}">{escape(path.relative_to(folder).as_posix())}</a>'
        f"</dt><dd>{escape(text)}</dd>"
        for path, text in contents
    )
