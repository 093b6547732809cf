"""Muon with AdamW: which parameters it takes, its arithmetic, its state."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ldm_ae.training.muon import MuonAdam, as_matrix
from ldm_ae.training.optimizers import OptimizerConfig, load_optimizer, optimizer_path
from tests.training.common import as_dictionary, parameters, stepped


def test_name_muon_selects_the_optimizer_with_both_methods() -> None:
    assert optimizer_path("Muon") == "ldm_ae.training.muon.MuonAdam"
    assert optimizer_path("torch.optim.Muon") == "torch.optim.Muon"
    assert isinstance(OptimizerConfig(class_path="ldm_ae.training.muon.MuonAdam").build(parameters(), 1), MuonAdam)


def test_muon_takes_hidden_matrices_alone() -> None:
    shapes = {
        "decoder.mid.conv.weight": (32, 16, 3, 3), "decoder.to_q.weight": (16, 16),
        "encoder.conv_in.weight": (32, 16, 3, 3),
        "conv.bias": (32,), "narrow.weight": (32, 3, 3, 3), "quant_conv.weight": (16, 16, 1, 1),
        "quantize.embedding.weight": (512, 16),
    }  # fmt: skip
    named = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    found = as_dictionary(OptimizerConfig(class_path="ldm_ae.training.muon.MuonAdam").build(named, 1))
    assert {name for name, group in found.items() if group["by"] == "Muon"} == {*list(shapes)[:2]}
    chosen = OptimizerConfig(class_path="ldm_ae.training.muon.MuonAdam", options={"adam": ["*mid*"], "smallest": 17})
    assert all(group["by"] == "AdamW" for group in as_dictionary(chosen.build(named, 1)).values())


def test_muon_of_a_matrix_equals_torchs_and_the_rest_adamw() -> None:
    torch.manual_seed(0)
    matrix, bias = torch.randn(32, 48), torch.randn(32)
    mine = {"a.weight": nn.Parameter(matrix.clone()), "a.bias": nn.Parameter(bias.clone())}
    theirs = {name: nn.Parameter(p.detach().clone()) for name, p in mine.items()}
    stepped(MuonAdam(mine.items(), lr=0.01, weight_decay=0.1), mine, 4)
    muon = torch.optim.Muon([theirs["a.weight"]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    adamw = AdamW([theirs["a.bias"]], lr=0.01, weight_decay=0.1)
    for _ in range(4):
        for parameter in theirs.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        muon.step()
        adamw.step()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_muon_orthogonalizes_a_convolution_in_any_memory_layout() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(16, 24, 3, 3), torch.randn(16, 24, 3, 3)
    updates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(weight.clone(memory_format=layout))
        parameter.grad = gradient.clone()
        optimizer = MuonAdam([("conv.weight", parameter)], lr=1.0)
        optimizer.step()
        updates.append(weight - parameter.detach())
        moment = optimizer.state[parameter]["momentum_buffer"]
        assert moment.stride() == parameter.stride()
        assert torch.allclose(moment, 0.05 * gradient)
    singular = torch.linalg.svdvals(updates[0].flatten(1)) / (0.2 * math.sqrt(216))
    # Five iterations of Newton-Schulz leave singular values between about 0.7 and 1.2 (Jordan's figure).
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    # The matrices have another order of columns, in which bfloat16 sums round differently.
    assert (updates[0] - updates[1]).norm() / updates[0].norm() < 0.02
    assert as_matrix(weight).data_ptr() == weight.data_ptr()


def test_muon_resumes_with_equal_bits() -> None:
    def build(named: dict[str, nn.Parameter]) -> Optimizer:
        return OptimizerConfig(
            class_path="ldm_ae.training.muon.MuonAdam", learning_rate=0.01, options={"smallest": 8, "adam": []}
        ).build(named, 1)

    def channels_last(named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        for parameter in named.values():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return named

    one, other = channels_last(parameters()), channels_last(parameters())
    first = build(one)
    assert len(first.param_groups) == 2
    stepped(first, one, 2)
    state = {"param_groups": first.state_dict()["param_groups"], "state": {
        index: {name: value.contiguous() for name, value in moments.items()}
        for index, moments in first.state_dict()["state"].items()
    }}  # fmt: skip
    for name, parameter in other.items():
        parameter.data.copy_(one[name])
    second = build(other)
    load_optimizer(second, copy.deepcopy(state))
    stepped(first, one, 2, seed=1)
    stepped(second, other, 2, seed=1)
    assert all(torch.equal(one[name], other[name]) for name in one)
