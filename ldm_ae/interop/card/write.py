"""The text of a card, and the folder that is uploaded: model, card, pictures and recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from ldm_ae.interop.card.facts import Card, Measured, Score
from ldm_ae.interop.card.markup import code, escaped, table
from ldm_ae.interop.card.metadata import front_matter
from ldm_ae.interop.card.recipe import recipe_rows, recipe_text, software
from ldm_ae.interop.card.use import diffusers_code, ldm_ae_code, scaling_lines
from ldm_ae.interop.diffusers import DIFFUSERS_FILES
from ldm_ae.models import LatentSpec
from ldm_ae.models.scaling import is_unscaled, measures_scale

README, PICTURES, RECIPE = "README.md", "pictures.png", "training/config.yaml"
CARD_FILES = DIFFUSERS_FILES | {README, PICTURES, RECIPE.partition("/")[0]}
"""Names at the top of the folder."""
FEW_TRAINING_IMAGES = 10_000
"""Number of training images below which the card says that a model may not generalize."""
FEW_IMAGES = 1_000
"""Number of evaluated images below which the card says that the scores are rough."""
_SETTINGS = ("precision", "memory_layout", "device")


def write_card(card: Card, folder: str | Path, *, pictures: Image.Image | None = None) -> Path:
    """Write the card, and the pictures and the recipe if there are any, into a model folder; return the card's path."""
    folder = Path(folder)
    assert (pictures is not None) == (card.pictures > 0)
    if pictures is not None:
        pictures.save(folder / PICTURES, optimize=True)
    if card.trained is not None:
        path = folder / RECIPE
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe_text(card.trained), encoding="utf-8")
    (folder / README).write_text(render_card(card), encoding="utf-8")
    return folder / README


def render_card(card: Card) -> str:
    """Return the card. Names from configurations and files never act as markup or metadata."""
    sections = [
        ("", _summary(card)),
        ("Use it in diffusers", _fenced(diffusers_code(card.model, card.repository))),
        ("Use it in ldm_ae", _fenced(ldm_ae_code(card.model, card.repository))),
        ("Scaling", "\n\n".join(scaling_lines(card.model, card.scale_images))),
        ("Scores", "" if card.measured is None else _scores(card.measured)),
        ("Pictures", _pictures(card)),
        ("Training", _training(card)),
        ("Limitations", "\n".join(f"- {line}" for line in _limitations(card))),
    ]
    body = "\n\n".join(f"## {title}\n\n{text.strip()}" if title else text.strip() for title, text in sections if text)
    note = "<sub>`ldm-ae push` generated this card from the model, its training run and its evaluation.</sub>"
    name = escaped(card.repository.partition("/")[2])
    return f"{front_matter(card)}\n# {name}\n\n{body}\n\n{note}\n"


def _fenced(text: str | None) -> str:
    return "" if text is None else f"```python\n{text}```"


def _summary(card: Card) -> str:
    model = card.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    spec = model.latent_spec
    started = "" if card.base_model is None else (
        f" It was trained further from {_model_link(card)}." if card.trained is not None else
        f" The weights are those of {_model_link(card)}."
    )  # fmt: skip
    rows = [
        ("Class", code(type(model.net).__name__)),
        ("Parameters", f"{parameters:,} ({card.weights})"),
        ("Downsample factor", str(spec.downsample_factor)),
        ("Latent channels", str(spec.channels)),
        ("Codes", "" if spec.codebook_size is None else f"{spec.codebook_size:,}"),
        ("Trained on", _trained_size(card)),
    ]
    sentence = f"An image autoencoder, the first stage of latent diffusion{_rate(spec)}.{started}"
    return f"{sentence}\n\n" + table(("Property", "Value"), [row for row in rows if row[1]])


def _rate(spec: LatentSpec) -> str:
    """Return what an example image becomes, for factors that divide its sides."""
    side, remainder = divmod(256, spec.downsample_factor)
    if remainder:
        return ""
    if spec.codebook_size is None:
        return f": 256×256 pixels become {spec.channels}×{side}×{side} numbers"
    if spec.codebook_maps is not None:
        sides = " + ".join(f"{side << i}×{side << i}" for i in range(spec.codebook_maps))
        return f": 256×256 pixels become {sides} codes, each one of {spec.codebook_size:,}"
    levels = f"{spec.codebook_levels}×" if (spec.codebook_levels or 1) > 1 else ""
    return f": 256×256 pixels become {levels}{side}×{side} codes, each one of {spec.codebook_size:,}"


def _model_link(card: Card) -> str:
    name = str(card.base_model)
    if "/" in name:
        return f"[{escaped(name)}](https://huggingface.co/{name})"
    return f"{code(name)}, which comes with ldm_ae"


def _trained_size(card: Card) -> str:
    """Return the size of the training images; empty where neither run nor configuration states it."""
    sizes = [] if card.trained is None else [*dict.fromkeys(card.trained.values("data.resolution"))]
    if sizes and all(type(size) is int for size in sizes):
        return f"images of {', then '.join(f'{size}×{size}' for size in sizes)} pixels"
    stated = card.model.net.config.get("sample_size")
    return f"images of {stated}×{stated} pixels, by its configuration" if isinstance(stated, int) else ""


def _scores(measured: Measured) -> str:
    rows = [_score_row(score) for score in measured.scores]
    baseline = measured.protocol["baseline"]
    thumbnail = (
        f"The thumbnail is a baseline of {escaped(baseline['thumbnail_size'])} pixels: {escaped(baseline['method'])}."
    )
    notes = [f"{escaped(score.label)}: {escaped(score.explanation)}" for score in measured.scores if score.explanation]
    notes += [
        f"{escaped(score.label)} is not a result yet: it is {escaped(score.caution)}."
        for score in measured.scores if score.caution
    ]  # fmt: skip
    return "\n\n".join([
        table(("Score", "Model", "Thumbnail"), rows), thumbnail, "\n".join(f"- {note}" for note in notes),
        "### Protocol", table(("Setting", "Value"), list(_protocol(measured))),
    ])  # fmt: skip


def _score_row(score: Score) -> tuple[str, str, str]:
    arrow = {"higher": " ↑", "lower": " ↓"}.get(score.direction, "")
    cells = (f"{escaped(score.label)}{arrow} ({code(score.key)})", _number(score.value),
             "" if score.baseline is None else _number(score.baseline))  # fmt: skip
    if not score.caution:
        return cells
    return f"{cells[0]}, *{escaped(score.caution)}*", f"*{cells[1]}*", f"*{cells[2]}*" if cells[2] else ""


def _number(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _protocol(measured: Measured) -> Iterator[tuple[str, str]]:
    """Yield what a reader needs to measure the same again."""
    protocol = measured.protocol
    images = protocol["images"]
    yield "Images", f"{measured.images:,} of {code(measured.source)}, {escaped(images['size'])} pixels"
    for name, value in images["transform"].items():
        if name != "version" and value not in (None, False):
            shown = ("×" if name == "size" else ", ").join(map(str, value)) if isinstance(value, list) else value
            yield f"Images: {escaped(name.replace('_', ' '))}", "yes" if value is True else escaped(shown)
    if images.get("rejected"):
        yield "Images that were not readable", f"{len(images['rejected']):,}"
    if images.get("keys_sha256"):
        yield "SHA-256 of the images' names", code(images["keys_sha256"])
    yield "SHA-256 of the weights", code(protocol["model"]["sha256"])
    yield "Reconstruction", escaped(protocol.get("reconstruction", ""))
    if isinstance(features := protocol.get("frechet_features"), dict):
        yield (
            "Network of the Fréchet distance",
            f"{code(features.get('network'))}, {escaped(features.get('preprocessing'))}",
        )
    for name in _SETTINGS:
        if protocol.get(name):
            yield name.replace("_", " ").capitalize(), escaped(protocol[name])
    yield "Software", software(protocol.get("versions"))


def _pictures(card: Card) -> str:
    if not card.pictures:
        return ""
    which = "image" if card.pictures == 1 else f"{card.pictures} images"
    return (
        f"![Originals, reconstructions, errors]({PICTURES})\n\n<sub>From top to bottom: original, reconstruction, "
        f"error ×{card.error_gain:g}. The first {which} of {code(card.pictured)}, not chosen by quality.</sub>"
    )


def _training(card: Card) -> str:
    if card.trained is None:
        return ""
    rows = table(("Setting", "Value"), recipe_rows(card.trained))
    options = "".join(f" --{key} VALUE" for key in map(_key, card.trained.removed))
    paths = " Paths of the machine are removed from it: give your own." if options else ""
    command = f"```bash\nldm-ae train --config {RECIPE}{options}\n```"
    return f"{rows}\n\n[{RECIPE}]({RECIPE}) is the whole configuration.{paths}\n\n{command}"


def _key(key: str) -> str:
    return "".join(char for char in key if char.isalnum() or char in "._-")


def _limitations(card: Card) -> Iterator[str]:
    if size := _trained_size(card):
        yield f"It was trained on {size}. Other sizes may be reconstructed less well."
    else:
        yield "The size of the training images is not known."
    if card.trained is None:
        yield _unknown_data(card)
    else:
        yield from _limits_of_training(card)
    if measures_scale(card.model) and is_unscaled(card.model.latent_spec):
        yield "The scale of the latents was not measured."
    if card.measured is None:
        yield "No scores were measured."
        return
    if card.measured.images < FEW_IMAGES:
        images = f"{card.measured.images:,} image{'' if card.measured.images == 1 else 's'}"
        yield f"The scores are over {images}: small differences to other models are not results."
    yield "Scores of other models can be compared only under the same protocol."
    if card.measured.activations:
        yield f"In fp16: {escaped(card.measured.activations)}."


def _unknown_data(card: Card) -> str:
    if card.base_model is None:
        return "The training data are not known to the program that wrote this card."
    return f"The training data are those of {_model_link(card)}; its card describes them."


def _limits_of_training(card: Card) -> Iterator[str]:
    trained = card.trained
    assert trained is not None
    count = str(trained.identity.get("data", "")).partition(" images")[0]
    if count.isdecimal() and int(count) < FEW_TRAINING_IMAGES:
        yield f"It was trained on {int(count):,} images: content that is rare in them may be reconstructed wrongly."
    planned = trained.planned
    if trained.step is not None and planned is not None and trained.step < planned:
        yield f"These weights are from step {trained.step:,} of {planned:,} planned steps."
    losses = [*trained.values("discriminator"), *trained.values("objective.perceptual")]
    if all(loss is None for loss in losses):
        yield "It was trained without a perceptual and an adversarial loss: fine texture is smoothed."
