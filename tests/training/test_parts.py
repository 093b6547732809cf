"""EMA, schedules, alarms, random states, trees."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ldm_ae.core.errors import UserError
from ldm_ae.models import KLAutoencoder
from ldm_ae.models.trainable import set_trainable
from ldm_ae.training.checkpoints.rng import rng_state, set_rng_state
from ldm_ae.training.checkpoints.state import check_state
from ldm_ae.training.checkpoints.tree import join_tensors, split_tensors
from ldm_ae.training.ema import EMA
from ldm_ae.training.monitoring.alarms import PATIENCE, Alarms
from ldm_ae.training.optimizers import OptimizerConfig, load_optimizer


def test_ema_follows_its_formula(tiny_model: KLAutoencoder) -> None:
    ema = EMA(tiny_model, decay=0.5)
    expected = {name: p.detach().double() for name, p in tiny_model.named_parameters()}
    for step in range(12):
        with torch.no_grad():
            for parameter in tiny_model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(tiny_model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, parameter in tiny_model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()
    assert ema.decay_at(0) == 0.1
    assert ema.decay_at(1000) == 0.5
    for name, parameter in ema.model.named_parameters():
        # Twelve float32 updates of values around 3.
        assert torch.allclose(parameter.double(), expected[name], atol=1e-5), name
        assert not parameter.requires_grad


def test_learning_rate_schedules() -> None:
    constant = OptimizerConfig(warmup_steps=3)
    assert [constant.factor(s, 10) for s in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    cooldown = OptimizerConfig(warmup_steps=1, cooldown_steps=3, final_learning_rate_ratio=0.2)
    assert [cooldown.factor(s, 6) for s in range(6)] == pytest.approx([0.5, 1, 1, 0.8, 0.6, 0.4])
    assert cooldown.factor(3, 60) == 1.0
    timed = OptimizerConfig(warmup_steps=1, cooldown_minutes=4, final_learning_rate_ratio=0.2)
    assert [timed.factor(s, 60, left) for s, left in enumerate((9, 5, 3, 0))] == pytest.approx([0.5, 1, 0.8, 0.2])
    cosine = OptimizerConfig(schedule="cosine", warmup_steps=2, final_learning_rate_ratio=0.1)
    assert cosine.factor(2, 12) == pytest.approx(1.0)
    assert cosine.factor(7, 12) == pytest.approx(0.55)
    assert cosine.factor(12, 12) == pytest.approx(0.1)
    with pytest.raises(UserError, match="cooldown_steps needs the constant schedule"):
        OptimizerConfig(schedule="cosine", cooldown_steps=1)
    with pytest.raises(UserError, match="cooldown_minutes must be at least 0"):
        OptimizerConfig(cooldown_steps=-1)


def test_ldm_learning_rate_is_scaled_by_the_global_batch() -> None:
    config = OptimizerConfig(learning_rate=4.5e-6, scale_learning_rate=True)
    optimizer = config.build([nn.Parameter(torch.zeros(1))], global_batch=24)
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)
    assert config.schedule_step(optimizer, 0, 10) == pytest.approx(1.08e-4)


def test_optimizers_are_built_by_class_path() -> None:
    parameters = [nn.Parameter(torch.zeros(1))]
    built = OptimizerConfig(class_path="torch.optim.AdamW", options={"weight_decay": 0.1}).build(parameters, 1)
    assert isinstance(built, torch.optim.AdamW)
    assert built.param_groups[0]["weight_decay"] == 0.1
    built = OptimizerConfig(class_path="torch.optim.RMSprop", options={"momentum": 0.5}).build(parameters, 1)
    assert isinstance(built, torch.optim.RMSprop)
    assert isinstance(OptimizerConfig(class_path="SGD", options={}).build(parameters, 1), torch.optim.SGD)
    with pytest.raises(UserError, match=r"no optimizer is named 'torch\.optim\.Adamm'; did you mean Adam\? There are"):
        OptimizerConfig(class_path="torch.optim.Adamm").build(parameters, 1)
    with pytest.raises(UserError, match=r"no optimizer is named .torch\.nn\.Linear."):
        OptimizerConfig(class_path="torch.nn.Linear").build(parameters, 1)
    with pytest.raises(UserError, match="momentun"):
        OptimizerConfig(class_path="torch.optim.SGD", options={"momentun": 0.5}).build(parameters, 1)


def test_trainable_patterns_select_parameters(tiny_model: KLAutoencoder) -> None:
    count = set_trainable(tiny_model, ["decoder.*", "post_quant_conv.*"])
    learning = {name for name, p in tiny_model.net.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in tiny_model.net.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))
    }
    assert count == sum(p.numel() for p in tiny_model.parameters() if p.requires_grad)
    for pattern, meant in (("decoder", r"decoder\.\*"), ("decodr.*", r"decoder\.\*"), ("encoder*.x", r"encoder\.\*")):
        with pytest.raises(UserError, match=rf"matches no parameter; .* are decoder\.\*, .*; did you mean '{meant}'\?"):
            set_trainable(tiny_model, [pattern])
    with pytest.raises(UserError, match=r"the model's parts are decoder\.\*, encoder\.\*, [^;?]*$"):
        set_trainable(tiny_model, ["zzz"])


@pytest.mark.parametrize(
    ("name", "logs"),
    [
        ("discriminator_won", {"discriminator_accuracy": 0.995, "logits_real": 5.0, "logits_fake": -5.0}),
        ("discriminator_collapsed", {"discriminator_accuracy": 0.5, "logits_real": 0.1, "logits_fake": 0.1001}),
        ("adaptive_weight_clamped", {"adaptive_weight": 1e4}),
        ("kl_collapsed", {"kl_per_latent": 1e-5}),
        ("codebook_collapsed", {"codebook_perplexity": 30.0, "codebook_spread": 0.03}),
        ("codebook_collapsed", {"codebook_perplexity": 1.1, "codebook_spread": 0.14}),
    ],
)
def test_alarms_are_reported_once_after_their_patience(name: str, logs: dict[str, float]) -> None:
    alarms = Alarms()
    heard = [list(alarms.check(logs)) for _ in range(PATIENCE + 3)]
    assert heard == [[]] * (PATIENCE - 1) + [[name]] + [[]] * 3
    healthy = {
        "discriminator_accuracy": 0.7, "logits_real": 0.5, "logits_fake": -0.5, "kl_per_latent": 1.0,
        "codebook_perplexity": 1.9, "codebook_spread": 0.1,
    }  # fmt: skip
    assert not any(Alarms().check(healthy) for _ in range(20))
    alarms.check(healthy)
    assert [list(alarms.check(logs)) for _ in range(PATIENCE)][-1] == [name]


def test_state_trees_roundtrip() -> None:
    parameter = nn.Parameter(torch.randn(3))
    optimizer = torch.optim.Adam([parameter], betas=(0.5, 0.9))
    parameter.sum().backward()
    optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "list": [1, 2.5, None, True, "x", (3, [4])]}
    plain, tensors = split_tensors(tree)
    back = join_tensors(json.loads(json.dumps(plain)), tensors)
    assert back["list"] == tree["list"]
    assert back["optimizer"]["param_groups"] == tree["optimizer"]["param_groups"]  # type: ignore[index]
    assert back["optimizer"]["state"].keys() == {0}
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    with pytest.raises(TypeError, match="cannot be saved without pickle: set"):
        split_tensors({"a": {1, 2}})


def test_random_states_roundtrip() -> None:
    random.random(), np.random.rand(), torch.rand(1)
    plain, tensors = split_tensors(rng_state())
    expected = (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(3))
    set_rng_state(join_tensors(json.loads(json.dumps(plain)), tensors))
    found = (random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(3))
    assert found[:3] == expected[:3]
    assert torch.equal(found[3], expected[3])


SOUND: dict[str, Any] = {
    "step": 1, "position": 4, "best": None, "identity": {"seed": 0, "resolution": 16}, "optimizers": [{}],
    "scaler": None, "rng": [{}],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 2.0}, {"step": True}, {"position": 10**30}, {"position": torch.ones(1)}, {"best": 3},
        {"best": {"step": "../..", "score": 1.0}},
        {"best": {"step": 1, "score": 1.0, "metric": 3, "value": 1.0}}, {"identity": None}, {"identity": {"seed": [1]}},
        {"optimizers": {}}, {"rng": [1]}, {"scaler": "x"}, {"skipped_steps": -1}, {"skipped_steps": None},
    ],
)  # fmt: skip
def test_invalid_state_values_are_refused(change: dict[str, Any]) -> None:
    check_state(SOUND)
    check_state(SOUND | {"best": {"step": 1, "score": -0.5}, "scaler": {}, "skipped_steps": 2})
    check_state(SOUND | {"best": {"step": 1, "score": -0.5, "metric": "lpips", "value": 0.5}})
    with pytest.raises(ValueError, match=next(iter(change))):
        check_state(SOUND | change)
    with pytest.raises(ValueError, match="is not the state of a run"):
        check_state([])


def test_invalid_optimizer_states_are_refused() -> None:
    def optimizer() -> torch.optim.Optimizer:
        return OptimizerConfig().build([nn.Parameter(torch.ones(3, 2))], 1)

    def stepped() -> dict[str, Any]:
        made = optimizer()
        made.param_groups[0]["params"][0].grad = torch.ones(3, 2)
        made.step()
        return made.state_dict()

    load_optimizer(optimizer(), stepped())
    wrong = stepped()
    wrong["param_groups"][0] |= {"lr": "fast", "betas": [None]}
    loaded = optimizer()
    options = {name: value for name, value in loaded.param_groups[0].items() if name != "params"}
    load_optimizer(loaded, wrong)
    assert {name: value for name, value in loaded.param_groups[0].items() if name != "params"} == options
    wrong = stepped()
    wrong["state"][0]["exp_avg"] = torch.ones(2, 3)
    with pytest.raises(ValueError, match="exp_avg must have its parameter's shape"):
        load_optimizer(optimizer(), wrong)
