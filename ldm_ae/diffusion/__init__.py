"""The diffusion transformer that is trained on latents, for regularizers and for the diffusion trainer."""

from ldm_ae.diffusion.sit import HEAD_WIDTH, NO_CLASS, TIMESTEPS, build_sit, flow

__all__ = ["HEAD_WIDTH", "NO_CLASS", "TIMESTEPS", "build_sit", "flow"]
