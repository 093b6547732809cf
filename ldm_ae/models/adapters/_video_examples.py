"""Configurations of the smallest useful network of each video class: its examples."""

from __future__ import annotations

from typing import Any

_WAN: dict[str, Any] = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True],
    "latents_mean": [0.5, -0.5, 0.25, 0.0], "latents_std": [2.0, 1.5, 1.0, 0.5],
}  # fmt: skip
# Of the residual form of Wan 2.2 and Qwen-Image 2.1, which has shortcuts between the numbers of channels.
_RESIDUAL = _WAN | {"dim_mult": [1, 1], "decoder_base_dim": 8, "is_residual": True}
_HUNYUAN_15: dict[str, Any] = {
    "latent_channels": 4, "block_out_channels": (8, 8, 8), "layers_per_block": 1, "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
}  # fmt: skip
_LTX: dict[str, Any] = {
    "latent_channels": 4, "block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "patch_size": 2,
    "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, False),
    "decoder_spatio_temporal_scaling": (True, False), "decoder_inject_noise": (False,) * 3,
}  # fmt: skip

EXAMPLES: dict[str, dict[str, Any]] = {
    "AutoencoderKLCogVideoX": {
        "down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2,
        "block_out_channels": (8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
        "temporal_compression_ratio": 2,
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4, "encoder_block_out_channels": (8,) * 4, "decode_block_out_channels": (8,) * 4,
        "resolution": 64, "num_layers": 1, "patch_size": 2, "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
        # A vector holds several frames of each channel.
        "latents_mean": [0.5, 9.0, -0.5, 9.0, 0.25, 9.0, 0.0, 9.0],
        "latents_std": [2.0, 9.0, 1.5, 9.0, 1.0, 9.0, 0.5, 9.0],
    },
    "AutoencoderKLHunyuanImageRefiner": _HUNYUAN_15,
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4, "down_block_types": ("HunyuanVideoDownBlock3D",) * 3,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 3, "block_out_channels": (4, 4, 4), "layers_per_block": 1,
        "norm_num_groups": 2, "spatial_compression_ratio": 4,
    },
    "AutoencoderKLHunyuanVideo15": _HUNYUAN_15,
    "AutoencoderKLKVAE": {
        "channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 4, "ch_mult": (1, 1),
    },
    "AutoencoderKLKVAEVideo": {
        "ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1, "z_channels": 4, "temporal_compress_times": 2,
    },
    "AutoencoderKLLTX2Video": _LTX | {
        "block_out_channels": (8,), "down_block_types": ("LTX2VideoDownBlock3D",), "decoder_block_out_channels": (16,),
        "layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1), "spatio_temporal_scaling": (True,),
        "decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False,) * 2,
        "downsample_type": ("spatiotemporal",), "upsample_type": ("spatiotemporal",), "upsample_residual": (True,),
        "upsample_factor": (2,),
    },
    "AutoencoderKLLTXVideo": _LTX | {
        "down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv",) * 2,
        "upsample_residual": (False,) * 2, "upsample_factor": (1, 1), "timestep_conditioning": True,
    },
    "AutoencoderKLMagvit": {
        "latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2,
        "down_block_types": ("SpatialDownBlock3D", "SpatialTemporalDownBlock3D"),
        "up_block_types": ("SpatialUpBlock3D", "SpatialTemporalUpBlock3D"),
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4, "latent_channels": 4,
        "layers_per_block": (1,) * 5, "latents_mean": (0.5, -0.5, 0.25, 0.0), "latents_std": (2.0, 1.5, 1.0, 0.5),
    },
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLQwenImage21": _RESIDUAL | {"scale_factor_spatial": 2},
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32), "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
        "layers_per_block": 2,
    },
    "AutoencoderKLWan": _RESIDUAL | {
        "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 4,
    },
    "AutoencoderVidTok": {
        "ch": 32, "ch_mult": (1, 1), "z_channels": 4, "num_res_blocks": 1, "spatial_ds": (0,), "spatial_us": (1,),
        "tempo_ds": (0,), "tempo_us": (1,),
    },
    "Kandinsky6SRVAE": {
        "latent_channels": 4, "encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16),
        "layers_per_block": 1, "temporal_compression_ratio": 2, "temporal_compression_start_level": 0,
    },
}  # fmt: skip
