"""KL and VQ autoencoders written from the description of CompVis's architecture, in plain torch, for tests only.

GroupNorm with eps 1e-6, swish, a stride-2 convolution after padding right and below by one, nearest upsampling, one
attention head over all positions as 1x1 convolutions. The number of groups is a parameter here so that it can be tiny.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = norm(inputs, groups), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = norm(outputs, groups), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class AttnBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels: int, *, down: bool, with_conv: bool = True):
        super().__init__()
        self.down = down
        if with_conv:
            self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(self, "conv") else F.avg_pool2d(x, 2)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.conv(x) if hasattr(self, "conv") else x


def middle(channels: int, groups: int, config: dict) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.block_2 = ResnetBlock(channels, channels, groups), ResnetBlock(channels, channels, groups)
    mid.attn_1 = nn.Identity() if config.get("attn_type") == "none" else AttnBlock(channels, groups)
    return mid


def level(inputs: int, outputs: int, blocks: int, groups: int, *, attention: bool) -> nn.Module:
    module = nn.Module()
    module.block = nn.ModuleList(ResnetBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(blocks))
    module.attn = nn.ModuleList(AttnBlock(outputs, groups) for _ in range(blocks if attention else 0))
    return module


def run_level(module: nn.Module, x: Tensor) -> Tensor:
    for i, block in enumerate(module.block):
        x = block(x)
        if len(module.attn) > 0:
            x = module.attn[i](x)
    return x


class Encoder(nn.Module):
    def __init__(self, config: dict, groups: int):
        super().__init__()
        widths = [config["ch"] * mult for mult in config["ch_mult"]]
        self.conv_in = nn.Conv2d(config["in_channels"], config["ch"], 3, padding=1)
        self.down = nn.ModuleList()
        resolution, width = config["resolution"], config["ch"]
        for i, outputs in enumerate(widths):
            attention = resolution in config["attn_resolutions"] and config.get("attn_type") != "none"
            down = level(width, outputs, config["num_res_blocks"], groups, attention=attention)
            width = outputs
            if i < len(widths) - 1:
                down.downsample = Resample(width, down=True, with_conv=config.get("resamp_with_conv", True))
                resolution //= 2
            self.down.append(down)
        self.mid = middle(width, groups, config)
        self.norm_out = norm(width, groups)
        self.conv_out = nn.Conv2d(width, (1 + config["double_z"]) * config["z_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for down in self.down:
            x = run_level(down, x)
            x = down.downsample(x) if hasattr(down, "downsample") else x
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: dict, groups: int):
        super().__init__()
        widths = [config["ch"] * mult for mult in config["ch_mult"]]
        width = widths[-1]
        self.conv_in = nn.Conv2d(config["z_channels"], width, 3, padding=1)
        self.mid = middle(width, groups, config)
        resolution = config["resolution"] // 2 ** (len(widths) - 1)
        ups = []
        for i in reversed(range(len(widths))):
            attention = resolution in config["attn_resolutions"] and config.get("attn_type") != "none"
            up = level(width, widths[i], config["num_res_blocks"] + 1, groups, attention=attention)
            width = widths[i]
            if i > 0:
                up.upsample = Resample(width, down=False, with_conv=config.get("resamp_with_conv", True))
                resolution *= 2
            ups.insert(0, up)  # up.0 is the highest resolution
        self.up = nn.ModuleList(ups)
        self.norm_out = norm(width, groups)
        self.conv_out = nn.Conv2d(width, config["out_ch"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for up in reversed(self.up):
            x = run_level(up, x)
            x = up.upsample(x) if hasattr(up, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class CompVisAutoencoder(nn.Module):
    """Built from the `ddconfig` of an exported config.yaml; without `embed_dim` as FLUX's and SD3's."""

    def __init__(self, config: dict, embed_dim: int | None, groups: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(config, groups), Decoder(config, groups)
        self.quant_conv = self.post_quant_conv = nn.Identity()
        if embed_dim is not None:
            self.quant_conv = nn.Conv2d(2 * config["z_channels"], 2 * embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(embed_dim, config["z_channels"], 1)

    def moments(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class Codebook(nn.Module):
    """The nearest row of a table, by the whole matrix of distances."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, width)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rows = z.permute(0, 2, 3, 1)
        distances = (rows[..., None, :] - self.embedding.weight).square().sum(dim=-1)
        indices = distances.argmin(dim=-1)
        return self.embedding(indices).permute(0, 3, 1, 2), indices


class CompVisVQ(nn.Module):
    """Built from the `params` of an exported config.yaml."""

    def __init__(self, params: dict, groups: int):
        super().__init__()
        config, embed_dim = params["ddconfig"], params["embed_dim"]
        self.encoder, self.decoder = Encoder(config, groups), Decoder(config, groups)
        self.quant_conv = nn.Conv2d(config["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, config["z_channels"], 1)
        self.quantize = Codebook(params["n_embed"], embed_dim)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantize(self.quant_conv(self.encoder(x)))

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(quantized))


class GumbelCodebook(nn.Module):
    """taming's Gumbel quantizer without its noise: the code of the largest logit."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        self.proj, self.embed = nn.Conv2d(width, codes, 1), nn.Embedding(codes, width)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        indices = self.proj(z).argmax(dim=1)
        return self.embed(indices).permute(0, 3, 1, 2), indices


class CompVisGumbelVQ(CompVisVQ):
    def __init__(self, params: dict, groups: int):
        super().__init__(params, groups)
        self.quantize = GumbelCodebook(params["n_embed"], params["embed_dim"])
