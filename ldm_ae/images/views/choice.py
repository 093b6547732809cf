"""The choice of a view: by the configuration, by a command's option, or by the meaning of the images."""

from __future__ import annotations

from ldm_ae.core.errors import UserError
from ldm_ae.images.pixels import RGB, PixelSpec
from ldm_ae.images.views.bands import COLOURS, Bands
from ldm_ae.images.views.composite import Composite
from ldm_ae.images.views.interface import View
from ldm_ae.images.views.repeated import Repeated
from ldm_ae.images.views.triples import Triples

SETTING = "objective.view"
"""The setting of a training run."""


def default_view(pixels: PixelSpec) -> View | None:
    """Return the view of images by their meaning; None for RGB, which needs none, and where none is sensible."""
    if pixels.meaning == "rgb":
        return None
    if pixels.meaning == "rgba":
        return Composite().of(pixels)
    if pixels.channels == 1:
        return Repeated().of(pixels)
    return Bands().of(pixels) if {*COLOURS} <= {*pixels.names} else None


def sees(needed: PixelSpec, pixels: PixelSpec) -> bool:
    """Return whether what requires `needed` images sees a model's images as they are; RGB of any depth is RGB."""
    return needed == pixels or (needed == RGB and pixels.meaning == "rgb")


def view_for(
    needed: PixelSpec | None, pixels: PixelSpec, view: View | None, user: str, *, setting: str = SETTING
) -> View | None:
    """Return the view, bound to a model's images, by which a network, a loss or a metric sees them; None for none.

    Args:
        needed: Images that `user` declares; None for images of any number of channels, which are seen as they are,
            except that alpha is composited.
        pixels: The model's images.
        view: The chosen view; None takes the default of the images' meaning.
        user: Name of a network, a loss or a metric.
        setting: Name of the setting that chooses the view, for the message.

    Raises:
        UserError: The user requires other images, and there is no view of the model's images for it.
    """
    if needed is None:
        return (view.of(pixels) if view is not None else default_view(pixels)) if pixels.meaning == "rgba" else None
    if sees(needed, pixels):
        return None
    if needed != RGB:
        pixels.require_match(needed, user)
    found = default_view(pixels) if view is None else view.of(pixels)
    if found is None:
        raise UserError(
            f"{user} requires images that are {needed}, but the model uses {pixels}. Set {setting} to bands or "
            "triples, which show three channels as RGB"
        )
    return found


def shown_view(pixels: PixelSpec, view: View | None = None) -> View | None:
    """Return the view by which people see images, one RGB image each; None for RGB.

    Alpha is composited over a checker. Without another view, the first three channels, or the first one, are shown.
    """
    if pixels.meaning == "rgb":
        return None
    if pixels.meaning == "rgba":
        return Composite(backgrounds=["checker"]).of(pixels)
    found = view.of(pixels) if view is not None else default_view(pixels)
    if isinstance(found, Triples):
        return Bands(bands=[pixels.names[channel] for channel in found.fixed()[0].tolist()]).of(pixels)
    if found is not None:
        return found
    names = pixels.names if pixels.channels >= len(COLOURS) else pixels.names[:1] * len(COLOURS)
    return Bands(bands=names[: len(COLOURS)]).of(pixels)


def parse_view(text: str) -> View:
    """Return the view of a command's option: `repeated`, `composite`, `composite:black,white`, `bands:nir,red,green`,
    `triples` or `triples:8`.

    Raises:
        UserError: There is no such view.
    """
    name, colon, rest = text.partition(":")
    values = [value.strip() for value in rest.split(",")] if colon else []
    plain = name.strip().lower()
    if plain in ("repeated", "grey", "gray") and not values:
        return Repeated()
    if plain in ("composite", "rgba"):
        return Composite(backgrounds=values) if values else Composite()  # type: ignore[arg-type]  # it checks them
    if plain == "bands" and values:
        return Bands(bands=values)
    if plain == "triples" and (not values or (len(values) == 1 and values[0].isdecimal())):
        return Triples(triples=int(values[0])) if values else Triples()
    raise UserError(
        f"the view is '{text}'; expected repeated, composite, composite:black,white, bands:RED,GREEN,BLUE with the "
        "names of three channels, triples or triples:NUMBER"
    )
