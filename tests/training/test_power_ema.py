"""Power-function averages: their formulas, their combination, their snapshots in a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ldm_ae.cli import main
from ldm_ae.core.errors import UserError
from ldm_ae.models import load_autoencoder
from ldm_ae.training.averages import snapshots
from ldm_ae.training.averages.posthoc import StoredAverages
from ldm_ae.training.averages.power import PowerEMA
from ldm_ae.training.averages.profiles import TOLERANCE, Profiles, combine, decay, exponent, length_of, reachable
from ldm_ae.training.averages.snapshots import Snapshots, stored_snapshots
from ldm_ae.training.config import TrainingConfig
from tests.pictures import smooth_picture
from tests.training.common import TINY, files, run


def profile(length: float, steps: int, finest: int) -> np.ndarray:
    """Weights (finest,) of each of equal parts of [0, finest], by the integral of the density over each part."""
    edges = np.minimum(np.arange(finest + 1) / steps, 1.0) ** (exponent(length) + 1)
    return np.diff(edges)


def test_exponent_inverts_the_length_and_agrees_with_the_paper() -> None:
    for length in (0.001, 0.01, 0.05, 0.1, 0.15, 0.25, 0.28):
        assert length_of(exponent(length)) == pytest.approx(length, rel=1e-9)
    # EDM2, section 3.1: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94.
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)
    assert length_of(0.0) == pytest.approx(12**-0.5)


def test_length_is_the_standard_deviation_of_the_averaged_steps() -> None:
    t = (np.arange(200_000) + 0.5) / 200_000
    for length in (0.05, 0.2):
        density = (exponent(length) + 1) * t ** exponent(length)
        mean = (density * t).mean()
        assert np.sqrt((density * (t - mean) ** 2).mean()) == pytest.approx(length, rel=1e-4)


def test_decay_gives_the_profile_of_its_length() -> None:
    steps = 40
    weights = np.zeros(steps)
    for update in range(1, steps + 1):
        beta = decay(0.1, update)
        weights *= beta
        weights[update - 1] += 1 - beta
    assert decay(0.1, 1) == 0.0
    np.testing.assert_allclose(weights, profile(0.1, steps, steps), rtol=1e-10)


def test_combination_agrees_with_dense_numerical_integration() -> None:
    steps, lengths, target = [30, 60, 90, 100], (0.05, 0.1), 0.07
    finest = 100_000  # parts of the time axis: the midpoint rule is exact to about 1e-6 for these smooth densities
    t = (np.arange(finest) + 0.5) / finest * 100

    def density(step: int, length: float) -> np.ndarray:
        gamma = exponent(length)
        return np.where(t <= step, (gamma + 1) * np.minimum(t / step, 1) ** gamma / step, 0.0)

    stored = np.stack([density(step, length) for step in steps for length in lengths])
    wanted = density(100, target)
    width = 100 / finest
    products = Profiles.of(steps, lengths).inner(Profiles.of(steps, lengths))
    # Densities that end inside a part of the axis differ by half a part: 1e-3 at the peak, relative 1e-3.
    np.testing.assert_allclose(products, stored @ stored.T * width, rtol=2e-3)
    factors = np.linalg.solve(stored @ stored.T, stored @ wanted)
    factors /= factors.sum()
    (found,) = combine(steps, lengths, 100, [target])
    np.testing.assert_allclose(found.factors.ravel(), factors, atol=5e-3)
    error = np.linalg.norm(factors @ stored - wanted) / np.linalg.norm(wanted)
    assert found.error == pytest.approx(error, rel=0.02)
    assert found.factors.sum() == pytest.approx(1.0)


def test_stored_length_is_combined_from_itself_alone() -> None:
    (found,) = combine([10, 20, 30], (0.05, 0.1), 30, [0.1])
    np.testing.assert_allclose(found.factors, [[0, 0], [0, 0], [0, 1]], atol=1e-9)
    assert found.error < 1e-6


def test_more_snapshots_reach_more_lengths() -> None:
    ranges = [reachable([1000 * i for i in range(1, count + 1)], (0.05, 0.1), 1000 * count) for count in (1, 8, 32)]
    rounded = [(round(shortest, 3), round(longest, 3)) for shortest, longest in ranges]
    assert rounded == [(0.039, 0.122), (0.03, 0.214), (0.014, 0.272)]
    found = combine([1000 * i for i in range(1, 33)], (0.05, 0.1), 32_000, [0.015, 0.03, 0.07, 0.15, 0.2, 0.27])
    assert max(combination.error for combination in found) <= TOLERANCE
    # The errors that docs/OBJECTIVES.md gives.
    assert [round(combination.error, 3) for combination in found[1:5]] == [0.011, 0.001, 0.002, 0.006]


class Walk(nn.Module):
    """Parameters of the kinds that a model has, and a trajectory: they approach a point, and fluctuate."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.BatchNorm1d(200)
        self.net.bias.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(1)

    def learned_parameters(self) -> list[torch.Tensor]:
        return []

    def move(self, step: int) -> None:
        with torch.no_grad():
            noise = torch.randn(200, generator=self.generator)
            self.net.weight.copy_(torch.linspace(-1, 1, 200) + 3.0 / (1 + 0.05 * step) + 0.3 * noise)
            self.net.running_mean.fill_(float(step))


@pytest.mark.slow
@pytest.mark.parametrize(("length", "tolerance"), [(0.03, 0.05), (0.05, 1e-6), (0.07, 0.01), (0.15, 0.01), (0.2, 0.02)])
def test_combined_average_equals_the_tracked_one(length: float, tolerance: float, tmp_path: Path) -> None:
    """On a trajectory of 640 steps with 32 snapshots. The tolerance is relative to the distance between the averages
    of lengths 0.05 and 0.1, which a wrong length would be off by, and follows the errors of the profiles: 0.011 for
    0.03 and below 0.007 for the others.
    """
    walk = Walk()
    stored, tracked = PowerEMA(walk, (0.05, 0.1), None), PowerEMA(walk, (length,), None)
    snapshots = Snapshots(tmp_path, in_background=True)
    for step in range(640):
        walk.move(step)
        stored.update(step)
        tracked.update(step)
        if (step + 1) % 20 == 0:
            snapshots.save(stored, step + 1)
    snapshots.writer.wait()
    (tmp_path / "model").mkdir()
    found = StoredAverages(tmp_path).weights(length)
    assert list(found) == ["weight"]  # the frozen bias is not stored
    expected = tracked.copied().averages[length]["weight"]
    averages = stored.copied().averages
    scale = (averages[0.05]["weight"] - averages[0.1]["weight"]).norm()
    assert (found["weight"] - expected).norm() / scale < tolerance
    assert stored_snapshots(tmp_path).snapshots[-1].buffers()["running_mean"][0] == 639.0


def test_averages_follow_parameters_whose_data_are_replaced() -> None:
    walk = Walk()
    power = PowerEMA(walk, (0.05,), None)
    walk.net.weight.data = walk.net.weight.data.clone()  # as DistributedDataParallel may do
    walk.move(0)
    power.update(0)
    assert torch.equal(power.copied().averages[0.05]["weight"], walk.net.weight)


def test_lengths_out_of_reach_are_refused_with_the_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no snapshots of averages; only a run .* training\.power_ema true"):
        StoredAverages(tmp_path)
    walk = Walk()
    power, snapshots = PowerEMA(walk, (0.05, 0.1), None), Snapshots(tmp_path, in_background=False)
    for step in range(8):
        walk.move(step)
        power.update(step)
        snapshots.save(power, step + 1)
    with pytest.raises(UserError, match="has no model yet; wait for its first checkpoint"):
        StoredAverages(tmp_path)
    (tmp_path / "model").mkdir()
    for length in (0.01, 0.25, 7.0, -1.0, float("nan")):
        with pytest.raises(UserError, match=r"8 snapshots of .*: expected a length from 0\.030 to 0\.214\. More snap"):
            StoredAverages(tmp_path).weights(length)
    snapshots.rewind(6)
    assert StoredAverages(tmp_path).step == 6
    (tmp_path / "averages" / "step-00000006" / "MANIFEST.json").unlink()
    assert StoredAverages(tmp_path).step == 5
    path = tmp_path / "averages" / "step-00000005" / "0.1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"step-00000005 is damaged \(0\.1\.safetensors has changed"):
        StoredAverages(tmp_path).weights(0.1)


@pytest.mark.parametrize(
    ("lengths", "problem"),
    [([0.3], "has 0.3; each must be between 0.001 and 0.28"), ([], "one or more different"), ([0.1, 0.1], "different")],
)
def test_invalid_lengths_are_refused(lengths: list[float], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        TrainingConfig(power_ema_lengths=lengths)


# ------------------------------------------------------------------------------------------------------- in a run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("power")
    (folder / "images").mkdir()
    for i in range(8):
        smooth_picture(i, 24, 20).save(folder / "images" / f"{i}.png")
    training = TINY["training"] | {
        "ema_decay": None, "power_ema": True, "power_ema_lengths": [0.05, 0.1, 0.07], "power_ema_every": 1,
    }  # fmt: skip
    config = TINY | {"data": TINY["data"] | {"train": str(folder / "images")}, "training": training}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    return run(recipe, recipe.with_name("run"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_run_evaluates_and_exports_the_first_length(trained: Path) -> None:
    exported = load_autoencoder(trained).net.state_dict()
    snapshots, invalid, _ = stored_snapshots(trained)
    assert [snapshot.step for snapshot in snapshots] == [1, 2, 3, 4, 5, 6]
    assert not invalid
    assert snapshots[-1].lengths == (0.05, 0.1, 0.07)
    stored = snapshots[-1].read(0.05)
    assert stored.keys() == exported.keys()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)
    plain = load_autoencoder(trained / "checkpoints" / "step-00000006" / "model").net.state_dict()
    assert not torch.equal(plain["encoder.conv_in.weight"], exported["encoder.conv_in.weight"])
    # Average number 1 is the model after update 1.
    first = [snapshots[0].read(length) for length in (0.05, 0.1)]
    assert all(torch.equal(first[0][name], first[1][name]) for name in first[0])


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_resumed_run_has_the_same_averages_and_snapshots(trained: Path, recipe: Path, tmp_path: Path) -> None:
    resumed = tmp_path / "run"
    shutil.copytree(trained, resumed, symlinks=True)
    shutil.rmtree(resumed / "checkpoints" / "step-00000006")
    damaged = resumed / "averages" / "step-00000005" / "0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    (resumed / "averages" / ".step-00000006.1.tmp").mkdir()
    run(recipe, resumed)
    for part in ("averages", "checkpoints", "model"):
        assert files(resumed / part) == files(trained / part)
    with pytest.raises(UserError, match=r"another power_ema \(0.05, 0.1, 0.07, now 0.05, 0.1\)"):
        run(recipe, resumed, "--training.power_ema_lengths", "[0.05, 0.1]", "--training.max_steps", "7")
    with pytest.raises(UserError, match=r"another ema|another power_ema \(0.05, 0.1, 0.07, now off\)"):
        run(recipe, resumed, "--training.power_ema", "false", "--training.max_steps", "7")


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_combined_average_of_a_training_equals_the_tracked_one(trained: Path) -> None:
    found = StoredAverages(trained)
    tracked = found.weights(0.07)
    found.lengths = (0.05, 0.1)
    error = found.combination(0.07).error
    combined = found.weights(0.07)
    shorter, longer = (stored_snapshots(trained).snapshots[-1].read(length) for length in (0.05, 0.1))

    def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([(a[name] - b[name]).norm() for name in a]).norm())

    # Six snapshots: the profile's error is 2 %, and consecutive weights of a short training differ in one direction.
    assert error < 0.03
    assert difference(combined, tracked) < 0.03 * difference(shorter, longer)
    model = found.model(0.07)
    assert torch.equal(dict(model.net.named_parameters())["decoder.conv_in.weight"], combined["decoder.conv_in.weight"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_frozen_parameters_are_not_stored(recipe: Path, tmp_path: Path) -> None:
    out = run(
        recipe, tmp_path / "run", "--training.trainable", "['decoder.*']", "--training.ema_decay", "0.9",
        "--training.power_ema_every", "4",
    )  # fmt: skip
    snapshots = stored_snapshots(out).snapshots
    assert [snapshot.step for snapshot in snapshots] == [4, 6]
    assert all(name.startswith("decoder.") for name in snapshots[-1].read(0.1))
    state = json.loads((out / "checkpoints" / "step-00000006" / "state.json").read_text())
    assert list(state["power_ema"]) == ["0.05", "0.1", "0.07"]  # `ema/` holds the exponential average
    model = StoredAverages(out).model(0.06)
    first = load_autoencoder(out / "checkpoints" / "step-00000003" / "model").net.state_dict()
    assert torch.equal(model.net.state_dict()["encoder.conv_in.weight"], first["encoder.conv_in.weight"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_export_writes_an_average_of_any_length(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(trained), str(tmp_path / "chosen"), "--ema", "0.08"]) == 0
    assert "average of length 0.08 at step 6" in capsys.readouterr().out
    found = load_autoencoder(tmp_path / "chosen").net.state_dict()
    expected = StoredAverages(trained).weights(0.08)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert main(["export", str(trained), str(tmp_path / "best"), "--ema", "best"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1 : lines.index(next(line for line in lines if "average of" in line))]]
    assert lines[0].split()[:3] == ["length", "psnr", "ssim"]
    lengths = [float(row[0]) for row in rows]
    assert lengths == sorted(lengths)
    assert {0.05, 0.07, 0.1} <= set(lengths)
    (best,) = (row for row in rows if row[-1] == "psnr")
    assert float(best[1]) == max(float(row[1]) for row in rows)
    assert f"average of length {float(best[0]):g} at step 6" in lines
    assert main(["inspect", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["averages"]
    assert (found["snapshots"], found["newest_step"], found["lengths"]) == (6, 6, [0.05, 0.1, 0.07])
    shortest, longest = (float(end) for end in found["export --ema"].split(" to "))
    assert (shortest, longest) == pytest.approx((StoredAverages(trained).range), abs=5e-4)
    for value, problem in (("0.0001", "expected a length from"), ("long", "--ema is 'long'; expected a length")):
        assert main(["export", str(trained), str(tmp_path / "other"), "--ema", value]) == 2
        error = capsys.readouterr().err
        assert problem in error
        assert error.count("\n") <= 2
    assert main(["export", str(tmp_path / "chosen"), str(tmp_path / "other"), "--ema", "0.08"]) == 2
    assert "has no snapshots of averages" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("one_parser")
def test_each_phase_has_snapshots_of_its_own(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = yaml.safe_load(recipe.read_text())
    config["phases"] = [
        {"training": {"max_steps": 3}},
        {"training": {"max_steps": 4, "trainable": ["decoder.*"], "power_ema_every": 2}},
    ]  # fmt: skip
    (tmp_path / "phases.yaml").write_text(yaml.safe_dump(config))
    out = run(tmp_path / "phases.yaml", tmp_path / "run")
    steps = {path.name: sorted(int(step.name[5:]) for step in path.iterdir()) for path in (out / "averages").iterdir()}
    assert steps == {"phase-1": [1, 2, 3], "phase-2": [2, 4]}
    stored = StoredAverages(out)
    assert (stored.phase, stored.step) == (2, 4)
    assert all(name.startswith("decoder.") for name in stored.weights(0.07))
    assert main(["export", str(out), str(tmp_path / "best"), "--ema", "best"]) == 0
    assert "at step 4" in capsys.readouterr().out
    Snapshots(out, in_background=False, phase=1).rewind(2)
    assert StoredAverages(out).phase == 1
    assert StoredAverages(out).step == 2


def test_phases_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1, 3):
        (tmp_path / f"phase-{number}").mkdir()
    (tmp_path / "phase-old").mkdir()
    assert [*snapshots._phases(tmp_path)] == [1, 2, 3, 10]
