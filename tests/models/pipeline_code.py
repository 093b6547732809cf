"""The part of a diffusers pipeline between its diffusion model and its autoencoder, run as it is written there.

A pipeline's scaling is a few lines of its `__call__`. A test that repeated them would test nothing, and a whole
pipeline needs text encoders. `latents_for_decode` therefore executes these lines themselves.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class _Recorder(SimpleNamespace):
    """An autoencoder with the configuration of another, which records what it is to decode."""

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        self.decoded = latents
        return (latents,)


class _Self(SimpleNamespace):
    """`self` of a pipeline that was never built: its static methods and the attributes that are given."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)


def latents_for_decode(pipeline: type[Any], net: Any, scaled_latents: Tensor, **names: Any) -> Tensor:
    """Return the latents that `pipeline` passes to `net.decode` when its diffusion model has given `scaled_latents`.

    Args:
        pipeline: A class of diffusers.
        net: Its autoencoder.
        scaled_latents: In the shape that the pipeline's latents have at its end.
        names: Attributes of the pipeline and variables of its `__call__` that these lines read.
    """
    code = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(pipeline.__call__))))
    branch = next(body for node in ast.walk(code) if isinstance(node, ast.If) for body in (node.body, node.orelse)
                  if any(_decodes(statement) for statement in body))  # fmt: skip
    last = next(number for number, statement in enumerate(branch) if _decodes(statement))
    recorder = _Recorder(config=net.config, dtype=torch.float32, device=torch.device("cpu"))
    for name in ("latents_mean", "latents_std"):
        if isinstance(vars(net).get("_buffers", {}).get(name), Tensor):
            setattr(recorder, name, getattr(net, name))
    variables = {"self": _Self(pipeline=pipeline, vae=recorder, **names), "latents": scaled_latents, "generator": None,
                 "output_type": "pt", "device": torch.device("cpu"), "prompt_embeds": scaled_latents,
                 "batch_size": len(scaled_latents), **names}  # fmt: skip
    module = ast.Module(body=copy.deepcopy(branch[: last + 1]), type_ignores=[])
    exec(compile(module, pipeline.__name__, "exec"), vars(inspect.getmodule(pipeline)) | variables)
    return recorder.decoded


def _decodes(statement: ast.stmt) -> bool:
    return not isinstance(statement, ast.If | ast.For) and "self.vae.decode(" in ast.unparse(statement)
