"""A comparison of models: scores, pictures and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_ae.comparison.codecs import Codecs
from ldm_ae.comparison.result import ModelResult, Shown, best_models
from ldm_ae.comparison.tables import terminal_lines
from ldm_ae.core.errors import UserError
from ldm_ae.evaluation.metrics.interface import ScoreInfo

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Comparison:
    """The result of `compare`. Its representation is the table that `ldm-ae compare` prints."""

    models: list[ModelResult]
    """The models that were compared, in the given order."""
    failed: dict[str, str]
    """Reasons why other models have no result, by name."""
    codecs: Codecs
    """Image codecs at the rates of the models."""
    originals: list[Shown]
    """The first images."""
    protocol: dict[str, Any]
    """What all results have in common, as JSON values."""
    page: Path | None = None
    """The written compare.html, if a folder was given."""

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """The scores of each model by name."""
        return {model.name: model.scores for model in self.models}

    @property
    def infos(self) -> dict[str, ScoreInfo]:
        """Display and explanation of each score, by its key."""
        found: dict[str, ScoreInfo] = {}
        for model in self.models:
            found = model.infos | found
        return {key: info for key, info in found.items() if any(key in model.scores for model in self.models)}

    def best(self, key: str) -> list[str]:
        """Return the names of the models with the best value of a score; several where they are equal, and none where
        all are or where neither direction is better."""
        return best_models(self.models, key)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the scores as a DataFrame: a row for each model by name, a column for each score by key.

        Raises:
            UserError: pandas is not installed.
        """
        return scores_frame(self.scores)

    def __repr__(self) -> str:
        return "\n".join(terminal_lines(self.models, self.failed))


def scores_frame(scores: dict[str, dict[str, float]], keys: Sequence[str] | None = None) -> pandas.DataFrame:
    """Return scores by the names of their models as a DataFrame; missing ones are NaN.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise UserError("to_pandas needs pandas, which is not installed; run pip install pandas") from None
    frame = pandas.DataFrame.from_dict(scores, orient="index", columns=keys)
    frame.index.name = "model"
    return frame
