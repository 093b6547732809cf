"""The page of a quickstart: each held-out photo beside its reconstructions by the shipped and the newly trained model.

The images are files beside the page, so that it needs no network and each can be opened alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ldm_ae.evaluation import Evaluation
from ldm_ae.evaluation.report.page import HEAD, STYLE, table
from ldm_ae.evaluation.report.viewer import VIEWER, VIEWER_STYLE
from ldm_ae.evaluation.scoring import BASELINE_PREFIX
from ldm_ae.images.in_memory import levels_image
from ldm_ae.io.files import writing
from ldm_ae.latents.decoding import output_names

ORIGINALS = "originals"

_TITLES = {"chelsea": "A cat", "rocket": "A rocket on its pad", "flower": "A flower"}
_OWN_STYLE = """
.photo{display:grid;gap:.75rem;grid-template-columns:repeat(3,1fr);margin:0 0 1rem}
.photo figure,.samples figure,.progress figure{margin:0}.photo .again{display:none}
h3{margin:1.5rem 0 .6rem;font-size:1.05rem}
table.narrow td,table.narrow th{padding-right:1.5rem;white-space:normal}
table small,th small{display:block;color:var(--soft);font-weight:400}
figcaption span{display:block;font-variant-numeric:tabular-nums}
.samples{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(14rem,1fr))}
.progress{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr))}
.samples img{image-rendering:pixelated}
p.lead{font-size:1.1rem;color:var(--ink)}
pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem;overflow-x:auto;
margin:.3rem 0 1rem;white-space:pre-wrap;overflow-wrap:anywhere}
.places{list-style:none;margin:.5rem 0 0;padding:0;display:grid;gap:.75rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,18rem),1fr))}
.places a{display:block;height:100%;padding:.7rem 1rem;background:var(--card);border:1px solid var(--line);
border-radius:10px;text-decoration:none;color:var(--ink)}
.places a:hover{border-color:var(--mark)}.places code{display:block;color:var(--mark);overflow-wrap:anywhere}
@media(max-width:40rem){.photo{grid-template-columns:1fr 1fr;gap:.4rem}.photo figure{padding:.4rem}
.photo .again{display:block}.samples{grid-template-columns:1fr 1fr}}
""".strip().replace("\n", "")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One of the two models and its reconstructions of the held-out photos."""

    name: str
    title: str
    """Name of its reconstructions for a reader who knows neither model."""
    origin: str
    """Short description of where the model comes from."""
    folder: str
    """Folder of its reconstructions, inside the quickstart's folder."""
    report: str
    """Folder of its report, inside the quickstart's folder."""
    numbers: int
    """Number of values in the latents of one photo."""
    evaluation: Evaluation

    def score_texts(self, photo: int | None = None, *, baseline: bool = False) -> dict[str, str]:
        """Return the scores that the thumbnail has too, with their units, by label: their means, those of one photo, or
        the thumbnail's means."""
        scores = self.evaluation.scores if photo is None else self.evaluation.images[photo].scores
        infos, prefix = self.evaluation.infos, BASELINE_PREFIX if baseline else ""
        return {infos[name].label: infos[name].text(scores[prefix + name]) for name in self.score_names()}

    def score_names(self) -> list[str]:
        """Return the names of the scores of each photo that the thumbnail has too."""
        scores = self.evaluation.images[0].scores
        return [name for name in scores if BASELINE_PREFIX + name in scores]


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


def photo_title(name: str) -> str:
    """Return what a photo shows, or its file's name without folder, suffix and separators."""
    stem = Path(name).stem
    words = stem.replace("_", " ").replace("-", " ").strip() or stem
    return _TITLES.get(stem, words[:1].upper() + words[1:])


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
<head>{HEAD}
<title>ldm_ae quickstart</title><style>{STYLE}{VIEWER_STYLE}{_OWN_STYLE}</style></head>
<body>
<p class="kicker">ldm_ae quickstart</p>
<h1>Photos through {contestants[0].numbers:,} numbers, and back</h1>
<p class="lead">An autoencoder encodes a photo as a small grid of numbers, its latents, and decodes them again. A
latent diffusion model works on the latents alone. None of the photos was in a training set. Click one to enlarge it and
compare it with the original, by a slider or a blink.</p>
{waiting}
{_photos(contestants)}
<h2>Mean scores on these photos</h2>
{_scores(contestants)}
{f"<h2>What longer training gives</h2><p>{lesson}</p>" if lesson else ""}
{_progress(folder)}
{_samples(folder)}
<h2>Results</h2>
<ul class="places">{_contents(folder, contents)}</ul>
<h2>Next steps</h2>
{"".join(f"<p>{escape(text)}</p><pre><code>{escape(command)}</code></pre>" for text, command in commands)}
{VIEWER}
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
        photo = photo_title(name)
        original = f"{ORIGINALS}/{name}"
        size = [f"{width} × {height} × 3 = {width * height * 3:,} numbers"]
        figures: list[str] = []
        for contestant in contestants:
            # Where two images fit beside each other, each reconstruction has the original beside it.
            figures.append(_figure(original, "Original", size, alt=f"{photo}, original", again=bool(figures)))
            scores = [" ".join(score) for score in contestant.score_texts(number).items()]
            figures.append(
                _figure(
                    f"{contestant.folder}/{name}", contestant.title, [f"{contestant.numbers:,} numbers", *scores],
                    alt=f"{photo}, {contestant.title}",
                )
            )  # fmt: skip
        rows.append(
            f'<h3>{escape(photo)}</h3><div class="views photo" data-title="{escape(photo)}">{"".join(figures)}</div>'
        )
    return "\n".join(rows)


def _figure(path: str, title: str, lines: Sequence[str] = (), *, alt: str = "", again: bool = False) -> str:
    """Return an image that a click enlarges; `again` marks one that the group already has, for narrow windows."""
    words = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return (
        f'<figure{" class=again" if again else ""}><a class="view{" copy" if again else ""}" href="{escape(path)}" '
        f'data-label="{escape(title)}"><img src="{escape(path)}" alt="{escape(alt or title)}"></a>'
        f"<figcaption><b>{escape(title)}</b>{words}</figcaption></figure>"
    )


def _group(title: str, figure: str) -> str:
    return f'<div class="views" data-title="{escape(title)}">{figure}</div>'


def _scores(contestants: Sequence[Contestant]) -> str:
    rows = [["Numbers in the latents of a photo", *(f"{c.numbers:,}" for c in contestants)]]
    first = contestants[0]
    means, thumbnails = [c.score_texts() for c in contestants], [c.score_texts(baseline=True) for c in contestants]
    infos = [first.evaluation.infos[name] for name in first.score_names()]
    for info in infos:
        small = f"<small>{escape(f'{info.better} {info.explanation}'.strip())}</small>"
        rows.append([f"{escape(info.label)} {info.arrow}{small}", *(texts[info.label] for texts in means)])
    for info in infos:
        label = f"{escape(info.label)} of a bicubic thumbnail of equally many numbers"
        rows.append([label, *(texts[info.label] for texts in thumbnails)])
    rows.append(
        ["Error maps, latents, all scores", *(f'<a href="{c.report}/report.html">report</a>' for c in contestants)]
    )
    header = ["", *(f"{escape(c.title)}<small>{escape(c.name)}, {escape(c.origin)}</small>" for c in contestants)]
    return table(header, rows, numbers=tuple(range(1, len(header))), css="narrow")


def _progress(folder: Path) -> str:
    figures: list[str] = []
    for path in sorted((folder / "run" / "samples").glob("step-*.png")):
        title = f"After {int(path.stem.split('-')[1]):,} steps"
        line = "Photos above, below each its reconstruction, and its error below that"
        figures.append(_group(title, _figure(path.relative_to(folder).as_posix(), title, [line])))
    if not figures:
        return ""
    return f'<h2>The training from scratch</h2><div class="progress">{"".join(figures)}</div>'


def _samples(folder: Path) -> str:
    paths = sorted(folder.glob("sample-*.png"))
    if not paths:
        return ""
    titles = [f"Sample {i + 1}" for i in range(len(paths))]
    figures = "".join(_group(title, _figure(path.name, title)) for title, path in zip(titles, paths, strict=True))
    return (
        "<h2>Samples of a diffusion model on these latents</h2><p>It was trained on the latent store for some seconds, "
        "which only shows that all parts work together: its samples are texture, not photos.</p>"
        f'<div class="samples">{figures}</div>'
    )


def _contents(folder: Path, contents: Sequence[tuple[Path, str]]) -> str:
    places = [(path.relative_to(folder).as_posix(), text) for path, text in contents]
    return "".join(
        f'<li><a href="{escape(place)}">{escape(text[:1].upper() + text[1:])}<code>{escape(place)}</code></a></li>'
        for place, text in places
    )
