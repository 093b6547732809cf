"""Hamiltonian Monte Carlo with a step size that adapts to the acceptance rate.

Source: Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901, section 3; the target acceptance rate of 0.65 and the
adaptation during a run follow Wu et al., arXiv 1611.04273.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TARGET_ACCEPTANCE = 0.65
_GROW, _SHRINK = 1.02, 0.98
"""Factors of the step size after acceptance above and below the target."""

LogDensity = Callable[[Tensor], Tensor]
"""Log-density (R,) of latents (R, C, h, w), up to a constant of each row."""


class Hamiltonian:
    """Transitions of chains that leave a density unchanged; the chains of one image share a step size.

    Args:
        groups: Number of images. Rows r of the latents belong to image r % groups.
        leapfrog_steps: Steps of one trajectory.
        generator: Source of momenta and acceptances, on the latents' device.
        step_size: First step size.
    """

    def __init__(self, groups: int, leapfrog_steps: int, generator: torch.Generator, *, step_size: float = 0.1):
        self.step_sizes = torch.full((groups,), step_size, device=generator.device)
        """(groups,) present step sizes."""
        self.accepted: list[Tensor] = []
        """Acceptance rate (groups,) of each transition."""
        self._leapfrog_steps = leapfrog_steps
        self._generator = generator

    def move(self, latents: Tensor, log_density: LogDensity, *, adapt: bool = True) -> Tensor:
        """Return the next state (R, C, h, w) of each chain, for R a multiple of the images; adapt the step sizes."""
        chains = len(latents) // len(self.step_sizes)
        size = self.step_sizes.repeat(chains).view(-1, *[1] * (latents.dim() - 1))
        momentum = torch.randn(latents.shape, generator=self._generator, device=latents.device)
        density, gradient = _with_gradient(latents, log_density)
        before = density - _kinetic(momentum)
        proposal, half = latents, momentum + 0.5 * size * gradient
        for number in range(self._leapfrog_steps):
            proposal = proposal + size * half
            density, gradient = _with_gradient(proposal, log_density)
            last = number == self._leapfrog_steps - 1
            half = half + (0.5 if last else 1.0) * size * gradient
        change = density - _kinetic(half) - before
        drawn = torch.rand(len(latents), generator=self._generator, device=latents.device)
        # A trajectory that diverges has a change that is not a number, for which the comparison is False.
        accepted = drawn.log() < change
        rate = accepted.view(chains, -1).float().mean(dim=0)
        self.accepted.append(rate)
        if adapt:
            self.step_sizes = self.step_sizes * torch.where(rate > TARGET_ACCEPTANCE, _GROW, _SHRINK)
        return torch.where(accepted.view(size.shape), proposal, latents)

    def acceptance(self) -> float:
        """Return the mean acceptance rate over all transitions and images."""
        return float(torch.stack(self.accepted).mean())


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().flatten(1).sum(dim=1)


def _with_gradient(latents: Tensor, log_density: LogDensity) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = latents.detach().requires_grad_(True)
        density = log_density(leaf)
        [gradient] = torch.autograd.grad(density.sum(), leaf)
    return density.detach(), gradient
