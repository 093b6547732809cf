"""An image's indices as the words of a range coder, with a prior's probabilities.

Decoding returns identical indices because encoder and decoder compute the prior's probabilities in the same way: both
fill one image code by code (`CodePrior.walk`), in the same order, with tensors of the same shapes. The probabilities
must be equal to the last bit, as they are on one machine with the same libraries, device and number of threads. They
may differ between two machines. So this measures a rate and is not a format for storing images.

Source: Martin, Range encoding: an algorithm for removing redundancy from a digitised message, 1979, in the library
constriction (Bamler, arXiv 2201.01741), which rounds probabilities to multiples of 2^-24 and uses words of 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.priors.interface import CodePrior


def encode_indices(prior: CodePrior, indices: Tensor, label: int = -1) -> NDArray[np.uint32]:
    """Encode the indices of one image in (32 * words) bits.

    Args:
        prior: A prior in eval mode.
        indices: `prior.shape`, int64 in [0, K).
        label: Class, -1 for none; the decoder needs the same.

    Raises:
        UserError: Constriction is not installed, or indices of another shape.
    """
    stream = _constriction()
    encoder = stream.queue.RangeEncoder()
    codes = iter(prior.sequence(indices[None])[0].tolist())

    def choose(logits: Tensor) -> Tensor:
        code = next(codes)
        encoder.encode(code, _model(stream, logits))
        return torch.tensor([code], device=logits.device)

    prior.walk(choose, labels=torch.tensor([label], device=prior.device))
    return encoder.get_compressed()


def decode_indices(prior: CodePrior, words: NDArray[np.uint32], label: int = -1) -> Tensor:
    """Return the indices that `encode_indices` encoded, `prior.shape` int64.

    Damaged words give other indices, or the error.

    Raises:
        UserError: Constriction is not installed, or words that are not the code of any image.
    """
    stream = _constriction()
    decoder = stream.queue.RangeDecoder(words)

    def choose(logits: Tensor) -> Tensor:
        return torch.tensor([decoder.decode(_model(stream, logits))], device=logits.device)

    try:
        return prior.walk(choose, labels=torch.tensor([label], device=prior.device))[0]
    except AssertionError as error:  # the library's error for invalid words
        raise UserError("the words are damaged, or were encoded with another prior or class") from error


def _model(stream: Any, logits: Tensor) -> Any:
    """Return the distribution of the next code for logits (1, K)."""
    probabilities = logits[0].double().cpu().softmax(dim=0).numpy()
    return stream.model.Categorical(probabilities, lazy=True, perfect=False)


def _constriction() -> Any:
    try:
        import constriction
    except ImportError:
        raise UserError("the range coder needs constriction: pip install 'ldm_ae[prior]'") from None
    return constriction.stream
