"""Modules of which a part never learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ldm_ae.core.frozen import PartlyFrozen


class Half(PartlyFrozen):
    frozen = ("backbone",)

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.backbone_head = nn.Linear(3, 1)  # a name that begins like the frozen one's
        self.register_buffer("average", torch.zeros(()))


def test_frozen_module_updates_neither_weights_nor_batch_statistics() -> None:
    module = Half().train()
    assert not module.backbone.training
    assert not module.backbone[1].training
    assert module.backbone_head.training
    assert list(module.learning_parameters()) == list(module.backbone_head.parameters())
    assert [id(buffer) for buffer in module.learning_buffers()] == [id(module.average)]
    module.backbone = nn.Linear(3, 3)
    assert not any(parameter.requires_grad for parameter in module.backbone.parameters())


def test_state_dict_omits_frozen_modules() -> None:
    torch.manual_seed(0)
    module, other = Half(), Half()
    names = {"backbone_head.weight", "backbone_head.bias", "average"}
    assert set(module.state_dict()) == names
    assert set(nn.ModuleDict({"a": module}).state_dict()) == {f"a.{name}" for name in names}
    before = copy.deepcopy(list(other.backbone.parameters()))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.backbone_head.weight, module.backbone_head.weight)
    assert all(torch.equal(new, old) for new, old in zip(other.backbone.parameters(), before, strict=True))
    nn.ModuleDict({"a": other}).load_state_dict({f"a.{name}": value for name, value in module.state_dict().items()})
    del (state := module.state_dict())["backbone_head.bias"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "backbone_head.bias"'):
        other.load_state_dict(state)
