"""Guesses, from names and shapes, at the kind of weights in which no layout recognizes an autoencoder."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ldm_ae.core.errors import printable

_LATENTS = "an autoencoder whose keys have no equivalent in diffusers: "
_PART = "a part or a variant of "
_CONFIGURED = "; if its keys are diffusers', give its config.json as --config"
# Patterns of keys, the most specific first, and the kind of file that such a key indicates.
_SIGNS = (
    (r"(^|[._])lora[._](up|down|A|B|unet|te\d?|mid)|\.hada_w1|\.lokr_w1",
     "a LoRA, which holds changes to another model's weights"),
    (r"^model_ema\.", "only the averaged (EMA) weights, in CompVis's names without dots; give the checkpoint "
     "that also has the raw weights"),
    (r"(^|\.)(encoder\.quant_conv|bn)\.(weight|running_mean)$", f"{_PART}FLUX.2's autoencoder (AutoencoderKLFlux2)"),
    (r"(^|\.)decoder\.norm_out\.(norm_layer|conv_y)\.|spatial_norm\.", f"{_LATENTS}a MoVQ, with spatial normalization; "
     "give its diffusers folder as MODEL"),
    (r"(^|\.)decoder\.decoder_(layers\.\d|pred|embed)", f"a representation autoencoder (AutoencoderRAE){_CONFIGURED}"),
    (r"(^|\.)encoder\.conv_blocks\.", f"{_LATENTS}LlamaGen's tokenizer"),
    (r"(^|\.)encoder\.stages\.", f"{_PART}a deep-compression autoencoder (AutoencoderDC)"),
    (r"^\d+\.conv\.\d\.weight$", "half of a TAESD (AutoencoderTiny); put taesd_encoder.safetensors and "
     "taesd_decoder.safetensors into one folder and give either"),
    (r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.(conv\.\d\.)?weight$", f"{_PART}a TAESD (AutoencoderTiny)"),
    (r"(^|\.)(encoder|decoder)\.(middle|downsamples|upsamples)\.\d", f"{_PART}Wan's or Qwen-Image's autoencoder"),
    (r"^(control_model\.|controlnet_|input_hint_block\.)", "a ControlNet"),
    (r"^(string_to_param|emb_params)", "a textual inversion (embeddings of words)"),
    (r"(^|\.)(double_blocks|joint_blocks|single_blocks)\.\d", "a diffusion transformer without its autoencoder"),
    (r"^model\.diffusion_model\.", "a diffusion model (UNet) without its first stage"),
    (r"^(input_blocks|output_blocks|time_embed|time_embedding|down_blocks\.\d+\.attentions\.\d+\.transformer_blocks)",
     "a diffusion UNet"),
    (r"(^|\.)text_model\.encoder\.layers\.\d|^cond_stage_model\.|^conditioner\.embedders\.", "a text encoder (CLIP)"),
    (r"(^|\.)encoder\.block\.\d+\.layer\.\d+\.SelfAttention\.", "a text encoder (T5)"),
    (r"^(model\.layers|transformer\.h)\.\d+\.", "a language model"),
    (r"^(vision_model|visual)\.", "an image encoder (CLIP)"),
    (r"^(transformer_blocks|blocks)\.\d+\.", "a transformer, such as a diffusion transformer without its autoencoder"),
    (r"^(loss\.)?discriminator\.|^main\.\d+\.(weight|bias)$", "a discriminator"),
    (r"^layer\d\.\d+\.conv\d\.weight$|^(features|classifier)\.\d", "an image classifier"),
    (r"^param_groups$|^exp_avg", "the state of an optimizer"),
)  # fmt: skip
_LONGEST_KEY, _MOST_KEYS = 200, 20_000


def seems_to_be(state: Mapping[str, Tensor]) -> str:
    """Return one line: the best guess, or the first parts of the names where no pattern matches."""
    keys = [key for key in list(state)[:_MOST_KEYS] if len(key) <= _LONGEST_KEY]
    if any(re.search(r"(^|\.)(encoder|decoder)\.conv(_in|1)\.(conv\.)?weight$", key) and state[key].ndim == 5
           for key in keys):  # fmt: skip
        return f"an autoencoder of video (its convolutions have three dimensions){_CONFIGURED}"
    for pattern, words in _SIGNS:
        if any(re.search(pattern, key) for key in keys):
            return words
    halves = {match[2] for key in keys if (match := re.search(r"(^|\.)(encoder|decoder)\.conv_in\.", key))}
    if len(halves) == 1:
        return f"the {halves.pop()} of an autoencoder without its other half"
    parts = list(dict.fromkeys(printable(key.split(".")[0], 30) for key in keys))
    return f"weights of an unknown kind; their names begin with {', '.join(parts[:6]) or 'nothing'}"
