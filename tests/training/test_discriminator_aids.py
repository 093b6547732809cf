"""Aids of a discriminator in the steps, in runs and in configurations."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm_ae.core.errors import UserError
from ldm_ae.core.precision import training_numerics
from ldm_ae.discriminators import (
    DISCRIMINATOR_AIDS,
    R1,
    AidedDiscriminator,
    Discriminator,
    DiscriminatorAid,
    LeCam,
    PatchDiscriminator,
)
from ldm_ae.losses import Objective, ObjectiveConfig
from ldm_ae.regularizers import Identity
from ldm_ae.training import TrainingConfig
from ldm_ae.training.configuration.parsing import config_parser, parse_config
from ldm_ae.training.networks import Networks, _synchronized
from ldm_ae.training.steps import discriminator_step, generator_step
from tests.training.common import assert_close, files, gradients, make_batches, make_parts, run, small_model, whole

TOLERANCE = 1e-5  # float32 sums of a few thousand terms in another order
REQUIRED = ["--out", "x", "--data.train", "y", "--model", "kl", "--discriminator", "patchgan"]
CLASSES = DISCRIMINATOR_AIDS.classes()


def aided(aids: list[DiscriminatorAid]) -> AidedDiscriminator:
    torch.manual_seed(2)
    return AidedDiscriminator(PatchDiscriminator(n_layers=1, ndf=8, norm="group"), aids)


@pytest.mark.parametrize("cls", CLASSES)
def test_accumulation_with_an_aid_equals_one_large_batch(accelerator: Accelerator, cls: type[DiscriminatorAid]) -> None:
    found = []
    for batches in (make_batches(4, 2), [whole(make_batches(4, 2))]):
        network = aided([cls.example()])
        # Averages at different distances from zero, so that gradients of biases are not sums that cancel.
        network.learn(torch.tensor(0.3), torch.tensor(-0.7))
        parts = make_parts(accelerator, discriminator=network)
        logs: dict[str, Tensor] = {}
        for step in (15, 16):  # the second has moving averages of the first, and R1
            parts.plain_pass.zero_grad()
            network.zero_grad()
            results, logs = generator_step(parts, batches, step)
            logs |= discriminator_step(parts, batches, results, step) or {}
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        found.append((gradients(parts.plain_pass), gradients(network), logs | buffers))
    assert_close(found[0][0], found[1][0], TOLERANCE)
    assert_close(found[0][1], found[1][1], TOLERANCE)
    assert found[0][2].keys() == found[1][2].keys()
    for name, value in found[1][2].items():
        assert torch.allclose(found[0][2][name], value, rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("cls", CLASSES)
def test_aid_changes_the_step(accelerator: Accelerator, cls: type[DiscriminatorAid]) -> None:
    """Every aid has an effect on the discriminator's gradients, and its penalty is logged."""
    batches, found = make_batches(1, 4), []
    for aids in ([], [cls.example()]):
        network = aided(aids)
        network.learn(torch.tensor(-3.0), torch.tensor(-3.0))
        parts = make_parts(accelerator, discriminator=network)
        results, _ = generator_step(parts, batches, step=16)
        logs = discriminator_step(parts, batches, results, step=16)
        assert logs is not None
        found.append((gradients(network), "discriminator_penalty" in logs))
    assert any(not torch.equal(found[0][0][name], value) for name, value in found[1][0].items())
    assert found[1][1] is (cls.penalty is not DiscriminatorAid.penalty)


@pytest.mark.slow
def test_compiled_discriminator_is_differentiated_twice(accelerator: Accelerator) -> None:
    """Compiled graphs have no second derivative; R1 calls the network inside."""
    found = []
    for compiled in (False, True):
        network = aided([R1()])
        if compiled:
            network.compile(backend="aot_eager")
        parts = make_parts(accelerator, discriminator=network)
        batches = make_batches(1, 2)
        results, _ = generator_step(parts, batches, step=0)
        discriminator_step(parts, batches, results, step=0)
        found.append(gradients(network))
    assert_close(found[1], found[0], TOLERANCE)


# ----------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_resumed_run_with_every_aid_equals_uninterrupted(tiny_config: Path, tmp_path: Path) -> None:
    names: list[Any] = [cls.__name__ for cls in CLASSES if cls is not R1]
    aids = json.dumps([*names, {"class_path": "R1", "init_args": {"every": 2}}])
    more = ("--optimizer.schedule", "constant", "--discriminator_aids", aids)
    expected = run(tiny_config, tmp_path / "whole", *more)
    run(tiny_config, tmp_path / "parts", *more, "--training.max_steps", "3")
    run(tiny_config, tmp_path / "parts", *more)
    last = expected / "checkpoints" / "step-00000006"
    assert files(tmp_path / "parts" / "checkpoints" / last.name) == files(last)
    averages = load_file(last / "discriminator_aids.safetensors")
    assert set(averages) == {"LeCam.average_real", "LeCam.average_fake", "LeCam.has_started"}
    assert averages["LeCam.average_real"] != 0
    lines = [json.loads(line) for line in (expected / "metrics.jsonl").read_text().splitlines()]
    assert any("discriminator_penalty" in line for line in lines)
    # Aids without a state may be added, changed and removed while the run goes on.
    run(tiny_config, expected, "--discriminator_aids", "[r1, diffaug]", "--training.max_steps", "7")
    assert (expected / "checkpoints" / "step-00000007").is_dir()
    with pytest.raises(UserError, match=r"has no discriminator_aids.safetensors, which this configuration needs; give"):
        run(tiny_config, expected, "--discriminator_aids", "[lecam]", "--training.max_steps", "8")


@pytest.mark.slow
def test_resumed_run_over_frozen_features_equals_uninterrupted(tiny_config: Path, tmp_path: Path) -> None:
    """The estimates of spectral norms are in checkpoints; the frozen network is not."""
    features = {"class_path": "efficientnet-lite0", "init_args": {"layers": [1, 2], "image_size": 32}}
    arguments = {"features": features, "channels": 8, "norm": "group"}
    more = (
        "--optimizer.schedule", "constant",
        "--discriminator", json.dumps({"class_path": "projected", "init_args": arguments}),
    )  # fmt: skip
    expected = run(tiny_config, tmp_path / "whole", *more, "--training.max_steps", "4")
    run(tiny_config, tmp_path / "parts", *more, "--training.max_steps", "3")
    run(tiny_config, tmp_path / "parts", *more, "--training.max_steps", "4")
    last = expected / "checkpoints" / "step-00000004"
    assert files(tmp_path / "parts" / "checkpoints" / last.name) == files(last)
    saved = load_file(last / "discriminator.safetensors")
    assert {name.partition(".")[0] for name in saved} == {"discriminators"}
    arguments["seed"] = 1
    with pytest.raises(
        UserError, match=r"another discriminator \(ProjectedDiscriminator with .*mixing seed 0, now .*1"
    ):
        run(tiny_config, expected, "--discriminator", json.dumps({"class_path": "projected", "init_args": arguments}))


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_aids_are_configured_by_names_in_a_list(tmp_path: Path) -> None:
    def configured(*arguments: str) -> list[str]:
        config = yaml.safe_load(config_parser().dump(parse_config([*arguments, *REQUIRED])))
        return [aid["class_path"].rpartition(".")[2] for aid in config["discriminator_aids"]]

    assert configured() == []
    assert configured("--discriminator_aids", "lecam") == ["LeCam"]
    assert configured("--discriminator_aids", "[eight-bit, diffaug]") == ["EightBit", "DiffAug"]
    assert configured("--discriminator_aids+", "r1", "--discriminator_aids+=lecam") == ["R1", "LeCam"]
    for text, expected in (
        ("discriminator_aids: diffaug", ["DiffAug"]),
        ("discriminator_aids: [r1, {class_path: diffaug, init_args: {policy: [cutout]}}]", ["R1", "DiffAug"]),
    ):
        (tmp_path / "recipe.yaml").write_text(f"{text}\n")
        assert configured("--config", str(tmp_path / "recipe.yaml")) == expected


@pytest.mark.usefixtures("one_parser")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[diffaugg]", "discriminator_aids: no aid of a discriminator is named 'diffaugg'; did you mean DiffAug?"),
        ("[{class_path: diffaug, init_args: {policyy: [cutout]}}]", r"init_args\.policyy'; did you mean 'policy'"),
        ("[{class_path: diffaug, init_args: {policy: [blur]}}]", r"policy: expected brightness, .* cutout, got blur"),
    ],
)
def test_mistakes_in_aids_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"discriminator_aids: {text}\n")
    with pytest.raises(UserError, match=message):
        parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED])


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_aids_without_a_discriminator_are_refused(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="discriminator_aids has no effect without a discriminator"):
        run(tiny_config, tmp_path / "run", "--discriminator", "null", "--discriminator_aids", "r1")


@pytest.mark.usefixtures("one_parser")
def test_arguments_inside_an_architecture_are_accepted(tmp_path: Path) -> None:
    text = """
discriminator:
  class_path: dino
  init_args:
    features: {class_path: dino, init_args: {weights: null, architecture: {hidden_size: 16, num_attention_heads: 2}}}
"""
    (tmp_path / "recipe.yaml").write_text(text)
    config = parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED[:6]])
    features = config.discriminator.init_args.features
    assert features.class_path == "ldm_ae.features.DINO"
    assert features.init_args.architecture == {"hidden_size": 16, "num_attention_heads": 2}
    (tmp_path / "recipe.yaml").write_text(text.replace("architecture", "architectur"))
    with pytest.raises(UserError, match=r"architectur.*did you mean 'architecture'"):
        parse_config(["--config", str(tmp_path / "recipe.yaml"), *REQUIRED[:6]])


def test_parameters_keep_their_names_when_aids_are_added(accelerator: Accelerator) -> None:
    """Groups of parameters are chosen by name, and an optimizer's state in a checkpoint belongs to the names."""
    found = []
    for network in (aided([]).discriminator, aided([cls.example() for cls in CLASSES])):
        assert isinstance(network, Discriminator)
        networks = Networks(
            small_model(), Identity(), Objective(ObjectiveConfig()), network, accelerator=accelerator,
            numerics=training_numerics("fp32", torch.device("cpu")), config=TrainingConfig(),
        )  # fmt: skip
        found.append(list(networks.discriminator_parameters()))
    assert found[0][0] == "layers.0.weight"
    assert found[1][: len(found[0])] == found[0]


def test_batch_normalization_is_not_synchronized_where_it_is_differentiated_twice() -> None:
    """torch's synchronized version has no second derivative, which R1 needs."""
    processes: Any = SimpleNamespace(num_processes=2, device=torch.device("cuda"))
    for aids, expected in (([LeCam()], nn.SyncBatchNorm), ([R1()], nn.BatchNorm2d)):
        network = _synchronized(AidedDiscriminator(PatchDiscriminator(n_layers=1, ndf=4), aids), processes)
        assert network is not None
        assert any(type(module) is expected for module in network.modules())
