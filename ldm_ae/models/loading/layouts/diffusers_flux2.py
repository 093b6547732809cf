"""FLUX.2's autoencoder under diffusers' keys, without its config.json."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_ae.models.loading.layouts.compvis import MARKS
from ldm_ae.models.loading.layouts.diffusers_kl import in_compvis_names
from ldm_ae.models.loading.layouts.flux2 import BN, infer_flux2
from ldm_ae.models.loading.layouts.interface import Contents, Inference, Layout


class DiffusersFlux2(Layout):
    """The keys of `diffusers.AutoencoderKLFlux2`."""

    keys = "diffusers' keys"
    marks = MARKS
    class_names = ("AutoencoderKLFlux2",)

    def recognizes(self, state: Mapping[str, Tensor]) -> bool:
        return f"{BN}running_mean" in state and any(key.startswith("encoder.down_blocks.") for key in state)

    def infer(self, contents: Contents) -> Inference:
        others = {key: value for key, value in contents.state.items() if not key.startswith(BN)}
        statistics = {key: value for key, value in contents.state.items() if key not in others}
        return infer_flux2(contents, in_compvis_names(others, str(contents.path)) | statistics)

    def example(self) -> dict[str, dict[str, Tensor]]:
        from ldm_ae.models.adapters.flux2 import Flux2Autoencoder

        model = Flux2Autoencoder(
            block_out_channels=(32,), layers_per_block=1, latent_channels=4, mid_block_add_attention=False
        )
        return {"AutoencoderKLFlux2": model.net.state_dict()}
