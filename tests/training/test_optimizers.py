"""Groups of parameters and schedule-free optimizers, and the runs of these and of Muon."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm_ae.core.errors import UserError
from ldm_ae.models import load_autoencoder
from ldm_ae.training.checkpoints.state import read_state
from ldm_ae.training.configuration import parsing
from ldm_ae.training.optimizers import OptimizerConfig, describe_groups, load_optimizer, optimizer_path
from ldm_ae.training.parameter_groups import ParameterGroup, divide
from tests.training.common import as_dictionary, files, parameters, run, stepped

# ------------------------------------------------------------------------------------------------------------ groups


def test_groups_apply_in_order_to_the_parameters_that_match() -> None:
    groups = [
        ParameterGroup(patterns=["*.bias", "*norm*"], options={"weight_decay": 0.0}),
        ParameterGroup(patterns=["encoder.*"], learning_rate_ratio=0.1, options={"betas": [0.0, 0.9]}),
        ParameterGroup(patterns=["encoder.conv_in.weight"], learning_rate_ratio=0.5, options={"weight_decay": 0.3}),
    ]
    config = OptimizerConfig(
        class_path="torch.optim.AdamW", learning_rate=1e-3, options={"weight_decay": 0.2}, groups=groups, warmup_steps=1
    )
    optimizer = config.build(parameters(), 1)
    found = as_dictionary(optimizer)
    assert found.keys() == parameters().keys()
    expected = {
        "decoder.conv_in.weight": (1e-3, 0.2, (0.9, 0.999)), "decoder.conv_in.bias": (1e-3, 0.0, (0.9, 0.999)),
        "decoder.conv_norm_out.weight": (1e-3, 0.0, (0.9, 0.999)), "encoder.conv_in.bias": (1e-4, 0.0, (0.0, 0.9)),
        "encoder.conv_in.weight": (5e-5, 0.3, (0.0, 0.9)), "encoder.conv_out.weight": (1e-4, 0.2, (0.0, 0.9)),
    }  # fmt: skip
    for name, (rate, decay, betas) in expected.items():
        assert found[name]["lr"] == pytest.approx(rate)
        assert (found[name]["weight_decay"], found[name]["betas"]) == (decay, betas)
    assert "decoder.conv_in.weight" in optimizer.param_groups[0]["param_names"]  # those that match nothing are first
    assert config.schedule_step(optimizer, 0, 10) == pytest.approx(5e-4)
    assert found["encoder.conv_in.weight"]["lr"] == pytest.approx(2.5e-5)
    lines = describe_groups(optimizer)
    assert len(lines) == len(optimizer.param_groups) == 5
    assert any("learning_rate 0.0001, betas (0.0, 0.9), weight_decay 0" in line for line in lines)


def test_norms_and_biases_are_exempted_from_weight_decay() -> None:
    config = OptimizerConfig(class_path="torch.optim.AdamW", options={}, decay_norms_and_biases=False)
    named = parameters() | {"gamma": nn.Parameter(torch.ones(8, 1, 1, 1)), "s": nn.Parameter(torch.zeros(()))}
    found = as_dictionary(config.build(named, 1))
    for name, parameter in named.items():
        exempt = name in ("gamma", "s") or parameter.ndim == 1
        assert found[name]["weight_decay"] == (0.0 if exempt else 0.01), name
    with pytest.raises(UserError, match="decay_norms_and_biases false has no effect without weight decay"):
        OptimizerConfig(decay_norms_and_biases=False).build(named, 1)


def test_one_group_without_settings_keeps_the_state_of_older_checkpoints() -> None:
    named = parameters()
    built = OptimizerConfig(options={}).build(named, 1)
    assert "param_names" not in built.param_groups[0]
    assert built.param_groups[0]["params"] == list(named.values())


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (
            [{"patterns": ["encodr.*"]}],
            r"pattern 'encodr\.\*' of a parameter group matches no trainable parameter; .*enco",
        ),
        ([{"patterns": ["encoder"]}], r"must match whole names, such as encoder\."),
        ([{"patterns": []}], "needs patterns"),
        ([{"patterns": ["*"], "learning_rate_ratio": 0.0}], "must be above 0"),
        ([{"patterns": ["*"], "options": {"weight_decy": 0.1}}], "weight_decy"),
        ([{"patterns": ["*"], "options": {"weight_decay": -1.0}}], "Invalid weight_decay value: -1.0"),
    ],
)
def test_invalid_groups_are_refused_in_one_line(groups: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refusal:
        OptimizerConfig(options={}, groups=[ParameterGroup(**group) for group in groups]).build(parameters(), 1)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (
            "[{pattern: ['*']}]",
            "an entry has no key 'pattern'; expected some of patterns, learning_rate",
        ),
        ("[{options: {weight_decay: 0}}]", r"an entry has no patterns; add it, as in \{patterns: \['\*\.bias'\]\}"),
        ("[{patterns: '*.bias'}]", r"optimizer\.groups\.patterns: expected list, got \*\.bias"),
    ],
)
def test_misspelt_entries_of_groups_are_refused(groups: str, problem: str, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(f"model: kl\nout: x\ndata: {{train: y}}\noptimizer:\n  groups: {groups}\n")
    with pytest.raises(UserError, match=problem) as refusal:
        parsing.parse_config(["--config", str(config)], parsing.config_parser())
    assert f"{config}, line 5: optimizer.groups" in str(refusal.value)


def test_members_of_groups_cannot_change_on_resume_but_options_can() -> None:
    def build(pattern: str, decay: float = 0.1) -> Optimizer:
        groups = [ParameterGroup(patterns=[pattern], options={"weight_decay": decay})]
        return OptimizerConfig(class_path="torch.optim.AdamW", options={}, groups=groups).build(parameters(), 1)

    state = build("*.bias").state_dict()
    resumed = build("*bias", 0.7)
    load_optimizer(resumed, copy.deepcopy(state))
    assert as_dictionary(resumed)["encoder.conv_in.bias"]["weight_decay"] == 0.7
    with pytest.raises(
        ValueError, match=r"decoder\.conv_in\.weight was in another group of its optimizer; groups keep"
    ):
        load_optimizer(build("decoder.conv_in.*"), copy.deepcopy(state))
    plain = OptimizerConfig(class_path="torch.optim.AdamW", options={}).build(parameters(), 1)
    with pytest.raises(ValueError, match="had 2 groups of parameters, and this one has 1; groups keep their members"):
        load_optimizer(plain, copy.deepcopy(state))
    with pytest.raises(ValueError, match="had 1 groups of parameters, and this one has 2"):
        load_optimizer(build("*.bias"), plain.state_dict())


# ----------------------------------------------------------------------------------------------------- schedule-free


class AveragingSGD(Optimizer):
    """Schedule-free SGD (Defazio et al., arXiv 2405.15682) with the interface of the package schedulefree."""

    def __init__(self, params: Any, lr: float = 1.0, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            if group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - group["beta"])
            group["train_mode"] = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert group["train_mode"], "a step in eval mode"
            fraction = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                beta, lr = group["beta"], group["lr"]
                p.lerp_(z, fraction)
                p.add_(p.grad, alpha=lr * (beta * (1 - fraction) - 1))
                z.sub_(p.grad, alpha=lr)
            group["k"] += 1


@pytest.fixture
def schedulefree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package schedulefree, with one optimizer."""
    module = ModuleType("schedulefree")
    monkeypatch.setattr(AveragingSGD, "__module__", "schedulefree.sgd")
    module.AveragingSGD = AveragingSGD  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "schedulefree", module)


def test_missing_package_of_an_optimizer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(UserError, match=r"needs the package schedulefree, .*: pip install 'ldm_ae\[schedulefree\]'"):
        optimizer_path("schedulefree.AdamWScheduleFree")


@pytest.mark.usefixtures("schedulefree")
def test_counts_of_an_optimizers_groups_are_restored() -> None:
    named = {"weight": nn.Parameter(torch.ones(3))}
    config = OptimizerConfig(class_path="schedulefree.AveragingSGD", learning_rate=0.5, options={"beta": 0.8})
    optimizer = config.build(named, 1)
    stepped(optimizer, named, 3)
    resumed = OptimizerConfig(class_path="schedulefree.AveragingSGD", learning_rate=0.25, options={"beta": 0.6}).build(
        {"weight": nn.Parameter(torch.ones(3))}, 1
    )
    load_optimizer(resumed, copy.deepcopy(optimizer.state_dict()))
    (group,) = resumed.param_groups
    assert (group["k"], group["train_mode"], group["beta"], group["lr"]) == (3, True, 0.6, 0.25)
    with pytest.raises(UserError, match=r"has no optimizer Adam; there are schedulefree\.AveragingSGD"):
        optimizer_path("schedulefree.Adam")


# ----------------------------------------------------------------------------------------------------------- in runs

_GROUPS = (
    "[{patterns: ['*.bias', '*norm*'], options: {weight_decay: 0.0}}, "
    "{patterns: ['encoder.*'], learning_rate_ratio: 0.1}]"
)
RUNS = {
    "groups": (
        "--optimizer", "adamw", "--optimizer.groups", _GROUPS, "--discriminator_optimizer", "adamw",
        "--discriminator_optimizer.decay_norms_and_biases", "false",
    ),
    "muon": (
        "--optimizer", "muon", "--optimizer.options", "{smallest: 8}", "--discriminator_optimizer", "muon",
        "--discriminator_optimizer.options", "{smallest: 8}",
    ),
    "schedule-free": (
        "--optimizer", "schedulefree.AveragingSGD", "--optimizer.options", "{beta: 0.9}",
        "--optimizer.schedule", "constant",
        "--optimizer.learning_rate", "1e-5", "--training.ema_decay", "null", "--discriminator_optimizer",
        "schedulefree.AveragingSGD", "--discriminator_optimizer.options", "{beta: 0.9}",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser", "schedulefree")
@pytest.mark.parametrize("kind", RUNS)
def test_run_resumes_with_equal_bits(kind: str, shared_config: Path, tmp_path: Path) -> None:
    whole = run(shared_config, tmp_path / "whole", *RUNS[kind])
    resumed = run(shared_config, tmp_path / "resumed", *RUNS[kind])
    assert files(whole / "checkpoints") == files(resumed / "checkpoints")
    shutil.rmtree(resumed / "checkpoints" / "step-00000006")
    run(shared_config, resumed, *RUNS[kind])
    for part in ("checkpoints", "model"):
        assert files(whole / part) == files(resumed / part)


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser", "schedulefree")
def test_schedule_free_run_evaluates_and_saves_the_average(shared_config: Path, tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, Tensor]:
        return load_autoencoder(folder).net.state_dict()

    often = run(shared_config, tmp_path / "often", *RUNS["schedule-free"], "--training.validate_every", "1",
                "--training.sample_every", "1", "--training.checkpoint_every", "1")  # fmt: skip
    checkpoint = often / "checkpoints" / "step-00000006"
    averaged, raw = weights(checkpoint / "ema"), weights(checkpoint / "model")
    state = read_state(checkpoint)["optimizers"][0]
    assert state["param_groups"][0]["k"] == 6
    assert state["param_groups"][0]["train_mode"] is True
    names = list(dict(load_autoencoder(checkpoint / "model").net.named_parameters()))
    for index, name in enumerate(names):
        z = state["state"][index]["z"]
        expected = raw[name].lerp(z, 1 - 1 / 0.9)
        assert torch.equal(averaged[name], expected), name
    assert not torch.equal(averaged[names[0]], raw[names[0]])
    assert all(torch.equal(value, weights(often / "model")[name]) for name, value in averaged.items())
    # Validations, samples and checkpoints leave the parameters as they are.
    seldom = run(shared_config, tmp_path / "seldom", *RUNS["schedule-free"], "--training.checkpoint_every", "6")
    assert files(seldom / "checkpoints" / "step-00000006" / "model") == files(checkpoint / "model")


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser", "schedulefree")
def test_averages_beside_a_schedule_free_optimizer_are_refused(shared_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training\.ema_decay has no place beside schedulefree.* to null"):
        run(shared_config, tmp_path / "run", *RUNS["schedule-free"], "--training.ema_decay", "0.9")
    with pytest.raises(UserError, match=r"training\.power_ema has no place beside schedulefree.* to false"):
        run(shared_config, tmp_path / "run", *RUNS["schedule-free"], "--training.power_ema", "true")


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_banner_prints_groups_and_resume_refuses_other_members(
    shared_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(shared_config, tmp_path / "run", *RUNS["groups"], "--training.max_steps", "3")
    printed = capsys.readouterr().err
    assert "optimizer: autoencoder, " in printed
    assert "learning_rate 1e-05, weight_decay 0" in printed
    assert "discriminator, " in printed
    with pytest.raises(
        UserError, match=r"does not fit this run: its optimizer had 4 groups .* and this one has 2"
    ) as error:
        run(shared_config, out, *RUNS["groups"], "--optimizer.groups", "[{patterns: ['*.bias']}]")
    assert "\n" not in str(error.value)
    other = _GROUPS.replace("0.1", "0.5").replace("weight_decay: 0.0", "weight_decay: 0.3")
    run(shared_config, out, *RUNS["groups"], "--optimizer.groups", other)
    printed = capsys.readouterr().err
    assert "learning_rate 5e-05, weight_decay 0.3" in printed


def test_groups_are_divided_by_all_patterns_that_match() -> None:
    named = {name: nn.Parameter(torch.ones(2, 2)) for name in ("a.x", "a.y", "b.x")}
    groups = [ParameterGroup(patterns=["*.x"]), ParameterGroup(patterns=["a.*"], learning_rate_ratio=3.0)]
    found = divide(named, groups, decay_norms_and_biases=True)
    assert [(list(part.parameters), part.learning_rate_ratio) for part in found] == [
        (["b.x"], 1.0), (["a.x"], 3.0), (["a.y"], 3.0),
    ]  # fmt: skip
