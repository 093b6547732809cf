"""How good an autoencoder is: scores with their protocol, and a report to look at."""

from ldm_ae.evaluation.activation_ranges import ActivationRanges, activation_ranges, first_batches
from ldm_ae.evaluation.evaluate import Evaluation, ImageScores, Picture, evaluate, validate
from ldm_ae.evaluation.metrics.features import (
    EfficientNetLite0Features,
    FeatureNetwork,
    InceptionFeatures,
    frechet_score_name,
)
from ldm_ae.evaluation.metrics.frechet import FeatureStatistics, frechet_distance
from ldm_ae.evaluation.metrics.image_quality import PerceptualDistance, psnr, ssim
from ldm_ae.evaluation.report.pictures import comparison_grid, error_map, latent_channel_pictures, to_uint8_image
from ldm_ae.evaluation.report.write import write_report

__all__ = [
    "ActivationRanges",
    "EfficientNetLite0Features",
    "Evaluation",
    "FeatureNetwork",
    "FeatureStatistics",
    "ImageScores",
    "InceptionFeatures",
    "PerceptualDistance",
    "Picture",
    "activation_ranges",
    "comparison_grid",
    "error_map",
    "evaluate",
    "first_batches",
    "frechet_distance",
    "frechet_score_name",
    "latent_channel_pictures",
    "psnr",
    "ssim",
    "to_uint8_image",
    "validate",
    "write_report",
]
