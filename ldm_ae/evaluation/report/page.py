"""The report's style, tables, histograms and images. Everything is inline, so that the page is one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

LARGEST_PNG = 2**17
"""Number of pixels up to which images are PNG; larger ones are WebP, so that the page stays small enough to open."""

WEBP_QUALITY = 92

HEAD = (
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
)
"""First elements of the head of every page."""

STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf8;--card:#fff;--ink:#1d1c1a;--soft:#6b6861;--line:#e4e1da;--mark:#3b6ea5;
--good:#2f7d4f;--bad:#b4472f}
@media(prefers-color-scheme:dark){:root{--paper:#161513;--card:#1f1e1b;--ink:#ece9e2;--soft:#9c978c;--line:#35332e;
--mark:#7fb0e0;--good:#74c191;--bad:#e58e77}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:2.5rem 1.25rem 5rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:clamp(1.5rem,4vw,2.2rem);line-height:1.2;margin:.1em 0 .4em;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:3rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:2rem 0 .3rem}
p{margin:.3rem 0 1rem;color:var(--soft);max-width:46rem}
.kicker{margin:0;font-size:.85rem}
.headline{list-style:none;margin:1.5rem 0 0;padding:0;display:grid;gap:.75rem;
grid-template-columns:repeat(auto-fit,minmax(11.5rem,1fr))}
.headline li{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem}
.headline span,.headline small{display:block;font-size:.85rem;color:var(--soft)}
.headline strong{display:block;font-size:1.8rem;font-weight:600;font-variant-numeric:tabular-nums}
.headline .wins{color:var(--good)}.headline .loses{color:var(--bad)}
.unsure{color:var(--soft);font-weight:400;font-size:.92rem}p.unsure{margin:.75rem 0 0}.unsure b{font-weight:600}
a{color:var(--mark)}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;margin-top:1.5rem;font-size:.92rem}
.facts{display:grid;gap:.75rem 2rem;margin:0 0 1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.facts dt{font-size:.82rem;font-weight:600;color:var(--soft)}.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th{font-weight:600;color:var(--soft);font-size:.82rem;text-align:left;white-space:nowrap}
th,td{padding:.4rem .9rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
table.narrow{width:auto}
table.scores{max-width:52rem}
.scores td:nth-child(2){font-weight:600}.scores td:nth-child(3),.scores small{color:var(--soft)}
.scores small{display:block;font-size:.85rem}.scores .n{padding:.4rem 0 .4rem .9rem}
.protocol td{overflow-wrap:anywhere}.protocol td:first-child{white-space:nowrap;color:var(--soft)}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.gallery{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,34rem),1fr))}
figure{margin:0 0 1rem;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.75rem}
.gallery figure{margin:0}
figcaption{font-size:.85rem;color:var(--soft);margin-top:.5rem;overflow-wrap:anywhere}
figcaption b{color:var(--ink);font-weight:600;display:block}
.pair{display:grid;grid-template-columns:2fr 2fr .96fr;gap:.5rem;align-items:start}
.pair div:nth-child(-n+2){grid-row:span 2}
.views span{display:block;font-size:.75rem;color:var(--soft);font-variant-numeric:tabular-nums}
img{display:block;width:100%;height:auto;border-radius:3px}
.pixels{image-rendering:pixelated}
.strip{display:grid;gap:.4rem;grid-template-columns:repeat(auto-fill,minmax(5.5rem,1fr))}
.small-multiples{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));margin-bottom:1.5rem}
.small-multiples b{font-size:.8rem;font-weight:600}
.bars svg{display:block;width:100%;height:4.5rem;border-bottom:1px solid var(--line)}
.wide .bars svg{height:9rem}
.wide{max-width:46rem}
.bars rect{fill:var(--mark)}
.bars div{display:flex;justify-content:space-between;font-size:.75rem;color:var(--soft);
font-variant-numeric:tabular-nums}
summary{cursor:pointer;margin-bottom:.75rem}
@media(max-width:40rem){body{padding-top:1.25rem}.pair{grid-template-columns:1fr 1fr}
.pair div:nth-child(-n+2){grid-column:span 2;grid-row:auto}
.protocol td:first-child{white-space:normal;overflow-wrap:normal}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--mark:#3b6ea5;--good:#2f7d4f;
--bad:#b4472f}body{max-width:none;padding:0;font-size:11pt}figure,tr,.headline li{break-inside:avoid}
h2,h3{break-after:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""".strip().replace("\n", "")


def document(
    title: str, *, kicker: str, heading: str, lead: str, top: str, sections: Sequence[tuple[str, str, str]],
    policy: str, style: str, end: str,
) -> str:  # fmt: skip
    """Return a whole page: a header with links to its sections, and the sections.

    Args:
        title: Title of the window. All texts are HTML already.
        kicker: Line above the heading.
        heading: Heading.
        lead: Paragraph below it.
        top: What follows in the header, above the links.
        sections: Place, title and content of each section; those without content are left out.
        policy: Element of the head that says what browsers may run.
        style: Style beside `STYLE`.
        end: What follows the sections.
    """
    filled = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{place}">{name}</a>' for place, name, _ in filled)
    body = "".join(f'<section id="{place}"><h2>{name}</h2>{content}</section>' for place, name, content in filled)
    return (
        f'<!doctype html>\n<html lang="en"><head>{HEAD}{policy}<title>{title}</title>'
        f"<style>{STYLE}{style}</style></head>"
        f'<body><header><p class="kicker">{kicker}</p><h1>{heading}</h1><p class="lead">{lead}</p>{top}'
        f"<nav>{links}</nav></header><main>{body}</main>{end}</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: tuple[int, ...], css: str) -> str:
    """Return a table whose cells are already HTML; the columns `numbers` are right-aligned."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if i in numbers else ''}>{cell}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{css}"><thead><tr>{cells("th", header)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def bars(counts: Sequence[int], ends: tuple[str, str], title: str) -> str:
    """Return a histogram of `counts` with labels at the two ends of the axis."""
    tallest = max(*counts, 1)
    rectangles = "".join(
        f'<rect x="{i + 0.06:g}" y="{100 - height:.2f}" width=".88" height="{height:.2f}"/>'
        for i, height in enumerate(100 * count / tallest for count in counts)
        if height
    )
    return (
        f'<div class="bars"><svg viewBox="0 0 {len(counts)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{rectangles}</svg><div><span>{escape(ends[0])}</span>'
        f"<span>{escape(ends[1])}</span></div></div>"
    )


def count(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def number(value: float) -> str:
    """Return a score in as many digits as a reader compares."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def data_uri(picture: Image.Image, *, largest_png: int = LARGEST_PNG) -> str:
    """Return the image as a data URI: PNG up to so many pixels or with a palette, else WebP."""
    buffer = io.BytesIO()
    small = picture.width * picture.height <= largest_png or picture.mode == "P"
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
    kind = "png" if small else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
