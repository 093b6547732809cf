"""Muon for the hidden matrices of a network and AdamW for all other parameters, as one optimizer.

Sources: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon, which replaces a matrix's momentum by the
nearest semi-orthogonal matrix; Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982, section 2.2, for the
scale 0.2 sqrt(max(rows, columns)) of the update, with which Muon takes AdamW's learning rate and weight decay.

torch.optim.Muon computes the updates. It takes matrices alone, so the weight (O, I, h, w) of a convolution is presented
as its matrix (O, I h w), as in Jordan's implementation. Input and output layers are left to AdamW, as he advises.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

INPUT_AND_OUTPUT = ("*conv_in.*", "*conv_out.*", "*quant*", "*embed*", "*codebook*")
"""Patterns of layers that read or write images, latents and codes in the networks of diffusers."""
BY = "by"
"""The entry of a group that names its method, `Muon` or `AdamW`."""


class MuonAdam(Optimizer):
    """Muon with AdamW. A parameter is updated by Muon if it is a hidden matrix: a weight of a linear layer or a
    convolution with at least `smallest` inputs and outputs, whose name matches no pattern of `adam`.

    Args:
        params: Parameters, pairs of names and parameters, or groups of either. Without names, shapes alone decide.
        lr: The learning rate of both. Muon's is multiplied by 0.2 sqrt(max(rows, columns)), which gives its update the
            root mean square that AdamW's typically has.
        weight_decay: Decoupled weight decay of both.
        momentum: Muon's momentum.
        nesterov: Nesterov's form of it.
        ns_steps: Iterations of Newton-Schulz that orthogonalize the update.
        betas: AdamW's.
        eps: AdamW's.
        fused: AdamW's.
        adam: Patterns of names of matrices that AdamW updates.
        smallest: Smallest number of inputs and of outputs of a hidden matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
        adam: Iterable[str] = INPUT_AND_OUTPUT,
        smallest: int = 16,
    ):
        defaults: dict[str, Any] = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps,
            "betas": betas, "eps": eps, "fused": fused,
        }  # fmt: skip
        for name, valid in (("momentum", 0.0 <= momentum < 1.0), ("ns_steps", 0 < ns_steps < 100)):
            if not valid:
                raise ValueError(f"invalid {name}: {defaults[name]}")
        patterns = tuple(adam)
        # Each takes one group's options and the shared state in `step`; the parameter is never used.
        self._adamw = AdamW([nn.Parameter(torch.zeros(()))], lr, betas, eps, weight_decay)
        self._muon = Muon(
            [nn.Parameter(torch.zeros(1, 1))], lr, weight_decay, momentum, ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip

        def is_matrix(entry: Any) -> bool:
            name, parameter = entry if isinstance(entry, tuple) else ("", entry)
            hidden = parameter.ndim > 1 and min(parameter.shape[:2]) >= smallest
            return hidden and not any(fnmatchcase(name, pattern) for pattern in patterns)

        entries = list(params)
        groups = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
        split = []
        for group in groups:
            members = list(group["params"])
            for matrices in (True, False):
                if chosen := [entry for entry in members if is_matrix(entry) == matrices]:
                    split.append({**group, "params": chosen, BY: "Muon" if matrices else "AdamW"})
        super().__init__(split, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group[BY] == "Muon":
                self._step_matrices(group)
            else:
                self._adamw.param_groups = [self._adamw.defaults | group]
                self._adamw.state = self.state
                self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        """Let Muon update views of the parameters and of their momenta in place."""
        views: list[Tensor] = []
        state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            own = self.state[parameter]
            if not own:
                own["momentum_buffer"] = torch.zeros_like(parameter)
            view = as_matrix(parameter.detach())
            view.grad = as_matrix(parameter.grad.to(memory_format=_layout(parameter)))
            state[view] = {"momentum_buffer": as_matrix(own["momentum_buffer"])}
            views.append(view)
        self._muon.param_groups = [self._muon.defaults | group | {"params": views}]
        self._muon.state = state
        self._muon.step()


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight (O, I, ...) as a view (O, I ...) in the order of memory.

    The order of the columns only permutes those of the update, so channels-last weights need no copy.
    """
    if not weight.is_contiguous():
        weight = weight.movedim(1, -1)
    return weight.view(len(weight), -1)


def _layout(tensor: Tensor) -> torch.memory_format:
    if tensor.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
