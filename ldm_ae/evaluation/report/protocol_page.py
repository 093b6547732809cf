"""The conditions under which the scores hold: the main ones in words near the top of the report, and all in a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from types import MappingProxyType

from ldm_ae.evaluation.report.page import count, table
from ldm_ae.evaluation.result import Evaluation

_PACKAGES = ("torch", "diffusers")


def facts(evaluation: Evaluation) -> str:
    """Return what was measured, on which images, how and with what, as a list that stays above the pictures."""
    protocol = evaluation.protocol
    images, model, versions = (_part(protocol, name) for name in ("images", "model", "versions"))
    rejected = images["rejected"]
    assert isinstance(rejected, dict)
    pixels = f"{count(len(evaluation.images), 'image')} of {images['size']} pixels from {images['source']}"
    commit = protocol["git_commit"]
    software = [f"ldm_ae {versions['ldm_ae']}{f' ({str(commit)[:8]})' if commit else ''}"]
    software += [f"{name} {versions[name]}" for name in _PACKAGES if name in versions]
    transform = images["transform"]
    assert isinstance(transform, dict)
    settings = [_setting(name, value) for name, value in transform.items() if _says(name, value)]
    lines = [
        ("Images", f"{pixels}; {count(len(rejected), 'image')} rejected" if rejected else pixels),
        ("Preparation", _sentence(", ".join(settings))),
        ("Reconstruction", _sentence(str(protocol["reconstruction"]))),
        ("Computation", f"Precision {protocol['precision']}, {protocol['memory_layout']}, on {protocol['device']}"),
        ("Model", f"{model['class']}, sha256 {str(model['sha256'])[:12]}"),
        ("Software", ", ".join(software)),
        *(("Warning", _sentence(warning.text)) for warning in evaluation.warnings),
        *((f"Skipped: {name}", reason) for name, reason in evaluation.skipped.items()),
    ]
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in lines if text)
    return f'<dl class="facts">{rows}</dl><p><a href="#protocol">The whole protocol</a></p>'


def protocol_table(protocol: Mapping[str, object], more: Mapping[str, object] = MappingProxyType({})) -> str:
    """Return every entry of a protocol, those of a mapping each, and then those of `more`, a row each."""
    rows: list[tuple[str, str]] = []
    for name, value in protocol.items():
        if isinstance(value, dict):
            rows += [_row(f"{name}: {part}", inner) for part, inner in value.items()]
        else:
            rows.append(_row(name, value))
    rows += [_row(name, value) for name, value in more.items()]
    return table(("Setting", "Value"), rows, numbers=(), css="protocol")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _part(protocol: Mapping[str, object], name: str) -> dict[str, object]:
    part = protocol[name]
    assert isinstance(part, dict)
    return part


def _says(name: str, value: object) -> bool:
    """Return whether a setting of the transform is worth a place: not its format's version, nor what was not done."""
    return name != "version" and value not in (None, False)


def _setting(name: str, value: object) -> str:
    if isinstance(value, list | tuple):
        value = ("x" if name == "size" else ", ").join(map(str, value))
    name = name.replace("_", " ")
    return name if value is True else f"{name} {value}"


def _row(name: str, value: object) -> tuple[str, str]:
    if value is None:
        shown = "none"
    elif isinstance(value, str | int | float):
        shown = escape(str(value))
    else:
        shown = f"<code>{escape(json.dumps(value, ensure_ascii=False))}</code>"
    return escape(name.replace("_", " ")), shown
