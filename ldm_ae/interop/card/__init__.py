"""The model card of the Hugging Face hub: metadata for programs and text for people, from what is known of a model."""

from ldm_ae.interop.card.facts import Card, Measured, Score, Trained
from ldm_ae.interop.card.licences import check_licence
from ldm_ae.interop.card.write import CARD_FILES, render_card, write_card

__all__ = ["CARD_FILES", "Card", "Measured", "Score", "Trained", "check_licence", "render_card", "write_card"]
