"""Exploration of latents: one interactive page that shows what a model's latents hold."""

from ldm_ae.exploration.exploration import EXPLORATION_FILES, Exploration
from ldm_ae.exploration.explore import LIMIT, SECTIONS, explore
from ldm_ae.exploration.settings import Section, Settings, spread

__all__ = ["EXPLORATION_FILES", "LIMIT", "SECTIONS", "Exploration", "Section", "Settings", "explore", "spread"]
