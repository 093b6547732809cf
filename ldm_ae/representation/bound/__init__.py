"""The probability of images under an autoencoder: bounds on log p(x), a reference for them, and the posterior.

Every function takes a model with a likelihood p(x|z) (`Autoencoder.likelihood`) and Gaussian posteriors q(z|x)
(`Autoencoder.has_moments`); the prior p(z) is N(0, 1) in every latent. Values are in nats for each image, and of images
as `pixel_values`; `bits_per_dimension` converts them.
"""

from ldm_ae.representation.bound.ais import AIS, Schedule, ais
from ldm_ae.representation.bound.densities import bits_per_dimension
from ldm_ae.representation.bound.elbo import ELBO, elbo
from ldm_ae.representation.bound.gaps import Gaps, gaps, optimal_posterior
from ldm_ae.representation.bound.iwae import iwae
from ldm_ae.representation.bound.picture import posterior_figure
from ldm_ae.representation.bound.posterior import Draws, posterior_draws

__all__ = [
    "AIS",
    "ELBO",
    "Draws",
    "Gaps",
    "Schedule",
    "ais",
    "bits_per_dimension",
    "elbo",
    "gaps",
    "iwae",
    "optimal_posterior",
    "posterior_draws",
    "posterior_figure",
]
