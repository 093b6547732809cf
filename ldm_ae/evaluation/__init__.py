"""The quality of an autoencoder: scores with their protocol, and a report with images."""

from ldm_ae.evaluation.activation_ranges import ActivationRanges, activation_ranges, first_batches
from ldm_ae.evaluation.evaluate import evaluate, validate
from ldm_ae.evaluation.metric_sets import named_metrics
from ldm_ae.evaluation.metrics import METRICS
from ldm_ae.evaluation.metrics.features import (
    EfficientNetLite0Features,
    FeatureNetwork,
    InceptionFeatures,
    frechet_score_name,
)
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from ldm_ae.evaluation.metrics.interface import CannotScoreError, ImageMetric, Metric, Needs, ScoreInfo
from ldm_ae.evaluation.metrics.msssim import msssim
from ldm_ae.evaluation.metrics.perceptual import PerceptualDistance
from ldm_ae.evaluation.metrics.psnr import psnr
from ldm_ae.evaluation.metrics.ssim import ssim
from ldm_ae.evaluation.report.pictures import comparison_grid, error_map, latent_channel_pictures, legible
from ldm_ae.evaluation.report.write import write_report
from ldm_ae.evaluation.result import Evaluation, ImageScores, Picture
from ldm_ae.images.in_memory import to_uint8_image

__all__ = [
    "METRICS",
    "ActivationRanges",
    "CannotScoreError",
    "EfficientNetLite0Features",
    "Evaluation",
    "FeatureNetwork",
    "FeatureStatistics",
    "ImageMetric",
    "ImageScores",
    "InceptionFeatures",
    "Metric",
    "Needs",
    "PerceptualDistance",
    "Picture",
    "ScoreInfo",
    "activation_ranges",
    "comparison_grid",
    "error_map",
    "evaluate",
    "first_batches",
    "frechet_distance",
    "frechet_score_name",
    "latent_channel_pictures",
    "legible",
    "msssim",
    "named_metrics",
    "psnr",
    "ssim",
    "to_uint8_image",
    "validate",
    "write_report",
]
