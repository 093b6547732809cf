"""Outliers: the strangest images of a data set, by several scores of a model."""

from ldm_ae.outliers.auroc import auroc
from ldm_ae.outliers.find import find_outliers
from ldm_ae.outliers.found import OUTLIER_FILES, Outliers
from ldm_ae.outliers.sets import ImageSet, Loading, Sets, open_sets

__all__ = ["OUTLIER_FILES", "ImageSet", "Loading", "Outliers", "Sets", "auroc", "find_outliers", "open_sets"]
