"""Inference in fp16 without silent damage: a batch that overflows is computed again in float32.

The largest float16 is 65504. Larger values become infinite, the next normalization turns them into NaN, and NaN rounded
to 8 bits is a black image. The second pass runs in float32 and not in bfloat16: users of fp16 rely on its 11 bits,
bfloat16 has 8, and every device supports float32. It costs time and memory for that batch only.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import INFERENCE_LAYOUT, LAYOUTS, arrange
from ldm_ae.models.interface import Autoencoder
from ldm_ae.models.posteriors import Posterior
from ldm_ae.models.wrappers.interface import Wrapper, wrappers_of

WIDE_PRECISION = "fp32"
"""Precision in which a batch that overflowed is computed again."""

_NAMED_KEYS = 3
_log = logging.getLogger("ldm_ae")
_Result = TypeVar("_Result", Posterior, Tensor)


def finite_rows(values: Tensor) -> Tensor:
    """Return (B,) bool for a tensor (B, ...): whether all values of each row are finite."""
    return values.isfinite().flatten(1).all(dim=1)


def tensors_in(output: object) -> Iterator[Tensor]:
    """Yield the tensors in a module's output: one tensor, or tuples, lists and mappings of them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, tuple | list | Mapping):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_in(part)


class NotFiniteError(UserError):
    """A model's output for a finite input has a value that is not finite."""


def require_finite(values: Tensor, keys: Sequence[str], precision: str, *, what: str = "the reconstruction") -> None:
    """Raise NotFiniteError that names the affected images unless all values (B, ...) are finite.

    Args:
        values: Output of a model that `for_inference` prepared.
        keys: B image names.
        precision: Precision of the model, `fp32`, `bf16` or `fp16`.
        what: Description of the values of each image, for the message.
    """
    bad = [key for key, finite in zip(keys, finite_rows(values).tolist(), strict=True) if not finite]
    if not bad:
        return
    names = ", ".join(bad[:_NAMED_KEYS]) + (f" and {len(bad) - _NAMED_KEYS} more" if len(bad) > _NAMED_KEYS else "")
    damaged = "the weights or the input are damaged, or training has diverged"
    where, remedy = {
        "fp32": ("in fp32", damaged),
        "bf16": ("in bf16", "try --precision fp32"),
        "fp16": (f"in fp16 and in {WIDE_PRECISION}", damaged),
    }[precision]
    raise NotFiniteError(f"{what} of {names} is not finite {where}; {remedy}")


class _Watch:
    """A forward hook that records, while a pass is watched, the images for which a network part's output is finite."""

    def __init__(self) -> None:
        self.rows: list[Tensor] | None = None

    def __call__(self, _module: nn.Module, _inputs: Any, output: object) -> None:
        if self.rows is not None:
            # Outputs without a batch dimension, such as a codebook's loss, do not belong to an image.
            self.rows.extend(finite_rows(tensor) for tensor in tensors_in(output) if tensor.ndim >= 2)


class _Watched(NamedTuple):
    """A model whose network's direct parts (encoder, quant_conv, ...) have `watch` as a hook."""

    model: Autoencoder
    watch: _Watch

    def run(self, values: Tensor, part: Callable[[Autoencoder, Tensor], _Result]) -> tuple[_Result, Tensor]:
        """Return the result, and (B,) bool: the images for which it and all intermediate outputs are finite.

        The parts are checked too, because the result may hide an overflow: a clamped log-variance, or the nearest code
        to NaN.
        """
        self.watch.rows = []
        try:
            result = part(self.model, values)
            rows = self.watch.rows
        finally:
            self.watch.rows = None
        if isinstance(result, Tensor):
            rows.append(finite_rows(result))
        else:
            rows.append(finite_rows(result.mode()))
            if result.moments is not None:
                rows.append(finite_rows(result.moments))
        finite = torch.ones(len(values), dtype=torch.bool, device=rows[-1].device)
        for row in rows:
            finite &= row if len(row) == len(finite) else row.all()
        return result, finite


class OverflowGuard(Wrapper):
    """A model in fp16 that computes a batch again in float32 when it overflows, and reports this once.

    An overflow is a non-finite value that results from finite input. The second pass uses the original weights, before
    they were rounded to fp16. They stay in host memory (as the caller's own tensors if those are there) until the first
    overflow moves them to the device. If the second pass is not finite either, its result is returned.

    Args:
        model: The model before its cast to fp16; `for_inference` casts it after the guard has kept its weights.
    """

    def __init__(self, model: Autoencoder):
        super().__init__(model)
        self.fallbacks = 0
        """Number of batches computed again, counting encoder and decoder passes separately."""
        self._originals = {name: tensor.detach().cpu() for name, tensor in _tensors(model)}
        self._watched = _Watched(model, _Watch())
        self._hooks = [part.register_forward_hook(self._watched.watch) for part in model.net.children()]
        # In a tuple, which torch does not register as a submodule: the second model does not add weights to this one.
        self._wide: _Watched | None = None

    def encode(self, pixel_values: Tensor) -> Posterior:
        return self._guarded(pixel_values, lambda model, values: model.encode(values), "encoder")

    def decode(self, latents: Tensor) -> Tensor:
        return self._guarded(latents, lambda model, values: model.decode(values), "decoder")

    def exact_parts(self) -> Sequence[nn.Module]:
        """Return the model's parts and, after the first overflow, those of the float32 model."""
        return [*self.model.exact_parts(), *(() if self._wide is None else self._wide.model.exact_parts())]

    def _guarded(self, values: Tensor, part: Callable[[Autoencoder, Tensor], _Result], name: str) -> _Result:
        result, finite = self._watched.run(values, part)
        if bool(finite.all()) or not bool((~finite & finite_rows(values)).any()):
            return result
        if self._wide is None:
            self._wide = self._widened()
        again, finite_again = self._wide.run(values, part)
        if bool((finite_again & ~finite).any()):
            if self.fallbacks == 0:
                _log.warning(
                    "fp16 overflowed in the %s: each batch that overflows is computed again in %s. "
                    "If most batches overflow, --precision bf16 or fp32 takes less time", name, WIDE_PRECISION,
                )  # fmt: skip
            self.fallbacks += 1
        return again

    def _widened(self) -> _Watched:
        """Return a float32 model of the original weights that shares everything else with the one in fp16."""
        watched = self._watched
        # deepcopy treats these as existing copies, so that no tensor is copied in fp16.
        copies: dict[int, Any] = {}
        with torch.inference_mode(False):
            for name, tensor in _tensors(watched.model):
                original = self._originals[name]
                wide = original.to(tensor.device, torch.float32 if original.is_floating_point() else None, copy=True)
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(wide, requires_grad=False) if is_parameter else wide
            model, watch = copy.deepcopy((watched.model, watched.watch), copies)
            arrange(model, LAYOUTS[INFERENCE_LAYOUT])
            return _Watched(model, watch)

    def unguarded(self) -> Autoencoder:
        """Return the model inside, with its original weights and without this guard."""
        for hook in self._hooks:
            hook.remove()
        for name, tensor in _tensors(self.model):
            tensor.data = self._originals[name]
        return self.model


def fp32_fallbacks(model: Autoencoder) -> int:
    """Return the number of batches that a model of `for_inference` computed again in float32 after an fp16 overflow.

    A batch that passes through the encoder and then through the decoder counts once in each.
    """
    return sum(wrapper.fallbacks for wrapper in wrappers_of(model) if isinstance(wrapper, OverflowGuard))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, including buffers that are not saved."""
    return itertools.chain(model.named_parameters(), model.named_buffers())
