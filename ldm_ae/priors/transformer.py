"""A causal transformer: GPT-2 of the library transformers, built from a configuration; nothing is downloaded.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019; over the codes of an
autoencoder as in Esser et al., Taming Transformers for High-Resolution Image Synthesis, arXiv 2012.09841, section 3.2.
Levels of residual quantization follow each other in one sequence, as in Copet et al., Simple and Controllable Music
Generation, arXiv 2306.05284, "flattening pattern".
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.priors.interface import CodePrior, Steps

HEAD_DIM = 32


class CausalTransformer(CodePrior):
    """`GPT2LMHeadModel` over the sequence, with learned positions and a first token for the class or for none.

    Its vocabulary is the codes of each level, then the classes, then the token for no class.

    Args:
        codebook_size: K.
        shape: (h, w), or (Q, h, w).
        classes: See `CodePrior`.
        width: Channels; a multiple of 32, the width of a head.
        depth: Blocks.
        dropout: GPT-2's three rates, of embeddings, attention and residuals.
    """

    def __init__(
        self, *, codebook_size: int, shape: Sequence[int], classes: int = 0, width: int = 256, depth: int = 6,
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(
            codebook_size=codebook_size, shape=shape, classes=classes, width=width, depth=depth, dropout=dropout
        )
        if width % HEAD_DIM:
            raise UserError(f"width is {width}; a transformer needs a multiple of {HEAD_DIM}")
        self.codes = self.levels * codebook_size
        self.net = _gpt2(
            vocab_size=self.codes + classes + 1, n_positions=math.prod(shape), n_embd=width, n_layer=depth,
            n_head=width // HEAD_DIM, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
        )  # fmt: skip

    def embed(self, sequence: Tensor) -> Tensor:
        level = torch.arange(sequence.shape[1], device=sequence.device) % self.levels
        return self._vectors(sequence + level * self.codebook_size)

    def logits(self, embedded: Tensor, classes: Tensor) -> Tensor:
        before = torch.cat([self._start(classes), embedded[:, :-1]], dim=1)
        found = self.net.transformer(inputs_embeds=before, use_cache=False).last_hidden_state
        # Each place can only have codes of its own level.
        codes = self.net.lm_head.weight[: self.codes].unflatten(0, (self.levels, -1))
        return torch.einsum("bpqd,qkd->bpqk", found.unflatten(1, (-1, self.levels)), codes).flatten(1, 2)

    def steps(self, classes: Tensor) -> Steps:
        """Yield the logits with a cache of the keys and values of the codes before."""
        name = _cache_name(self.net)
        cache, last = None, self._start(classes)
        for position in range(math.prod(self.shape)):
            found = self.net(inputs_embeds=last, use_cache=True, **{name: cache})
            cache = found[name]
            first = position % self.levels * self.codebook_size
            codes = yield found.logits[:, 0, first : first + self.codebook_size]
            last = self._vectors(first + codes[:, None])

    def _start(self, classes: Tensor) -> Tensor:
        return self._vectors(self.codes + classes[:, None])

    def _vectors(self, tokens: Tensor) -> Tensor:
        return self.net.get_input_embeddings()(tokens)


def _cache_name(net: torch.nn.Module) -> str:
    """Return the name of the argument and output that hold keys and values; releases of transformers differ in it."""
    return "cache" if "cache" in inspect.signature(net.forward).parameters else "past_key_values"


def _gpt2(**arguments: Any) -> Any:
    """Return a GPT-2 network; UserError where transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UserError("the transformer needs transformers: pip install 'ldm_ae[prior]'") from None
    # Input and output codes are separate: safetensors does not store a tensor under two names.
    config = GPT2Config(**arguments, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(config)
