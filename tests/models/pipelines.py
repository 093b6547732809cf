"""The code of diffusers' pipelines that stands between a diffusion model and its autoencoder.

Its lines are taken out of the installed pipelines and executed, so that no denoising network is built.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from typing import Any, cast

from torch import Tensor


class PipelineParts:
    """A pipeline of a class that has only the given parts, such as `vae`; methods are those of the class.

    Args:
        pipeline: The class.
        parts: Its parts by name.
    """

    def __init__(self, pipeline: type[Any], **parts: Any):
        self._pipeline = pipeline
        vars(self).update(parts)

    def __getattr__(self, name: str) -> Any:
        found = inspect.getattr_static(self._pipeline, name)
        if isinstance(found, staticmethod):
            return found.__func__
        if isinstance(found, property):
            assert found.fget is not None
            return found.fget(self)
        return types.MethodType(found, self) if inspect.isfunction(found) else found


def decode_lines(pipeline: type[Any]) -> list[ast.stmt]:
    """Return the statements of a pipeline's `__call__` from the test of `output_type` to the call of `vae.decode`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(pipeline.__call__))))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "output_type" in ast.unparse(node.test):
            for branch in (node.body, node.orelse):
                places = [i for i, line in enumerate(branch) if "self.vae.decode" in ast.unparse(line)]
                if places:
                    return branch[: places[0] + 1]
    raise AssertionError(f"{pipeline.__name__} does not decode where it tests output_type")


def decoded_by(pipeline: type[Any], net: Any, scaled_latents: Tensor, **names: Any) -> Tensor:
    """Return what a pipeline's own lines decode from the latents that its denoising ends with.

    Args:
        pipeline: The pipeline's class.
        net: Its autoencoder.
        scaled_latents: Its variable `latents` at the end of the denoising.
        names: Other local variables that the lines read.
    """
    names = {"self": PipelineParts(pipeline, vae=net), **names}
    return cast(Tensor, _run(pipeline, {"latents": scaled_latents, "generator": None, **names})["image"])


class _Recorder(types.SimpleNamespace):
    """An autoencoder that records what it is to decode."""

    def decode(self, latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        self.decoded = latents
        return (latents,)


def latents_for_decode(pipeline: type[Any], net: Any, scaled_latents: Tensor, **names: Any) -> Tensor:
    """Return the latents that a pipeline's own lines give to `vae.decode`.

    Args:
        pipeline: The pipeline's class.
        net: Its autoencoder, of which the lines read configuration and buffers.
        scaled_latents: Its variable `latents` at the end of the denoising.
        names: Its parts, and other local variables that the lines read.
    """
    buffers = {key: value for key, value in vars(net).get("_buffers", {}).items() if isinstance(value, Tensor)}
    recorder = _Recorder(config=net.config, dtype=scaled_latents.dtype, device=scaled_latents.device, **buffers)
    local = {"latents": scaled_latents, "generator": None, "output_type": "pt", "device": scaled_latents.device,
             "prompt_embeds": scaled_latents, "batch_size": len(scaled_latents), **names}  # fmt: skip
    _run(pipeline, {"self": PipelineParts(pipeline, vae=recorder, **names), **local})
    return cast(Tensor, recorder.decoded)


def _run(pipeline: type[Any], names: dict[str, Any]) -> dict[str, Any]:
    """Execute `decode_lines` with these variables, and return all variables."""
    source = cast(str, inspect.getsourcefile(pipeline))
    module = vars(inspect.getmodule(pipeline))
    exec(compile(ast.Module(decode_lines(pipeline), []), source, "exec"), module | names, names)
    return names
