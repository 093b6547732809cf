"""The loops of docs/PYTHON.md train, and the one in Lightning does what the plain one does.

Lightning is not a dependency. Where it is not installed, a stand-in calls the same hooks of the same module.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_ae.training import TrainingLosses
from tests.docs_blocks import BLOCKS, Run
from tests.test_docs import blocks

PAGE = "docs/PYTHON.md"


class LightningModule(nn.Module):
    """The parts of `lightning.LightningModule` that the example uses."""

    automatic_optimization = True

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return self.built_optimizers  # type: ignore[return-value]

    def manual_backward(self, loss: Tensor) -> None:
        loss.backward()

    def log_dict(self, values: dict[str, Tensor]) -> None:
        assert all(value.ndim == 0 and not value.requires_grad for value in values.values())


class Trainer:
    """The parts of `lightning.Trainer` that the example uses."""

    def __init__(self, max_epochs: int):
        self.max_epochs = max_epochs

    def fit(self, module: Any, batches: Iterable[Tensor]) -> None:
        assert not module.automatic_optimization
        module.built_optimizers = module.configure_optimizers()
        module.train()
        for _ in range(self.max_epochs):
            for i, batch in enumerate(batches):
                module.training_step(batch, i)


def images() -> DataLoader[Any]:
    """Two batches; a list would be several loaders to Lightning."""
    generator = torch.Generator().manual_seed(5)
    return DataLoader(torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1, batch_size=2)  # type: ignore[arg-type]


def run(block: str, *, state: Tensor | None = None, **namespace: Any) -> dict[str, Any]:
    """Run the block with small networks, from one seed, or from a state of the random numbers."""
    (code,) = (found.code for found in blocks(PAGE) if found.name == (PAGE, block))
    how = BLOCKS[(PAGE, block)]
    for old, new in how.replace.items() if isinstance(how, Run) else ():
        code = code.replace(old, new)
    torch.manual_seed(11)
    if state is not None:
        torch.set_rng_state(state)
    exec(compile(code, PAGE, "exec"), namespace)
    return namespace


@pytest.fixture
def _lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("lightning") is None:
        monkeypatch.setitem(
            sys.modules,
            "lightning",
            SimpleNamespace(LightningModule=LightningModule, Trainer=Trainer),  # type: ignore[arg-type]
        )


@pytest.mark.slow
@pytest.mark.usefixtures("_lightning")
def test_loop_in_lightning_trains_as_the_plain_loop_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Lightning writes lightning_logs
    start: TrainingLosses = run("import torch", batches=[])["losses"]
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    plain = run("import torch", batches=images())
    assert {"rec_loss", "perceptual_loss", "kl_loss", "generator_loss", "adaptive_weight"} <= plain[
        "generator"
    ].logs.keys()
    expected = plain["losses"].state_dict()
    changed = {name for name, tensor in expected.items() if not torch.equal(tensor, before[name])}
    trained = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    # Within its margin, the hinge loss moves logits of real and reconstructed images by as much, against each other.
    assert trained - changed <= {"discriminator.layers.11.bias"}
    losses: TrainingLosses = run("import torch", batches=[])["losses"]
    # The plain loop begins to draw in this state, after the networks have drawn their weights.
    run("import lightning", state=torch.get_rng_state(), torch=torch, losses=losses, batches=images())
    found = losses.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
