"""Settings that a resumed run may change, refusals of others by name, and refused commands that change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import torch
import yaml

from ldm_ae.core.errors import UserError
from ldm_ae.training.changes import changed_settings, remedies, saved_config
from ldm_ae.training.optimizers import OptimizerConfig, load_optimizer
from tests.pictures import smooth_picture
from tests.training.common import TINY, files, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_parser")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, a recipe of three steps for them, and a run by it. `folder` restores it for each test."""
    folder = tmp_path_factory.mktemp("changes") / "folder"
    (folder / "images").mkdir(parents=True)
    for i in range(8):
        smooth_picture(i, 24, 20).save(folder / "images" / f"{i}.png")
    config = TINY | {
        "data": TINY["data"] | {"train": str(folder / "images")}, "training": TINY["training"] | {"max_steps": 3},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    run(folder / "tiny.yaml", folder / "run")
    return folder.rename(folder.with_name("saved"))


@pytest.fixture
def folder(saved: Path) -> Iterator[Path]:
    """A fresh copy, at the path that the run's configuration records."""
    copy = saved.with_name("folder")
    shutil.copytree(saved, copy)
    yield copy
    shutil.rmtree(copy)


@pytest.fixture
def images(folder: Path) -> Path:
    return folder / "images"


@pytest.fixture
def recipe(folder: Path) -> Path:
    return folder / "tiny.yaml"


@pytest.fixture
def begun(folder: Path) -> Path:
    """A run of three steps."""
    return folder / "run"


def lines(out: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_changed_settings_take_effect_and_are_logged_at_that_step(
    begun: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        recipe, begun, "--optimizer.learning_rate", "1e-8", "--optimizer.schedule", "constant",
        "--objective.regularization_weights", "{kl: 0.5}", "--training.max_steps", "6",
    )  # fmt: skip
    changed = {line["setting"]: (line["step"], line["from"], line["to"]) for line in lines(begun, "change")}
    assert changed == {
        "optimizer.learning_rate": (3, "0.0001", "1e-08"),
        "optimizer.schedule": (3, '"cosine"', '"constant"'),
        "objective.regularization_weights.kl": (3, "1e-06", "0.5"),
        "training.max_steps": (3, "3", "6"),
    }
    assert "from step 3: optimizer.learning_rate 0.0001 -> 1e-08" in capsys.readouterr().err
    assert lines(begun, "train")[-1]["learning_rate"] == pytest.approx(1e-8)
    assert yaml.safe_load((begun / "config.yaml").read_text())["optimizer"]["learning_rate"] == 1e-8


def test_loading_an_optimizers_state_keeps_its_own_options() -> None:
    weight = torch.nn.Parameter(torch.ones(3))

    def made(**options: object):
        return OptimizerConfig(**options).build([weight], 1)  # type: ignore[arg-type]

    before = made(learning_rate=1e-3)
    weight.grad = torch.ones(3)
    before.step()
    after = made(learning_rate=1e-5, options={"betas": [0.9, 0.95], "weight_decay": 0.1})
    load_optimizer(after, before.state_dict())
    group = after.param_groups[0]
    assert (group["lr"], group["initial_lr"], group["betas"]) == (1e-5, 1e-5, (0.9, 0.95))
    assert group["weight_decay"] == 0.1
    assert torch.equal(after.state[weight]["exp_avg"], before.state[weight]["exp_avg"])
    assert float(after.state[weight]["step"]) == 1.0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed", "7"], "another seed (0, now 7)"),
        (["--model.init_args.norm_num_groups", "8"], "another network (norm_num_groups=4, now norm_num_groups=8)"),
        (["--optimizer.class_path", "torch.optim.SGD", "--optimizer.options", "{}"],
         "another optimizer (torch.optim.Adam, now torch.optim.SGD)"),
        (["--discriminator_optimizer.class_path", "torch.optim.AdamW"], "another discriminator_optimizer"),
        (["--training.batch_size", "3"], "another global_batch (4, now 6); the images of a step are batch_size x "
         "accumulation x processes; keep their number with --training.batch_size 2 "
         "--training.accumulation 2, or give another --out"),
        (["--training.batch_size", "1"], "keep their number with --training.batch_size 1 "
         "--training.accumulation 4, or give another --out"),
        (["--discriminator.init_args.ndf", "16"], "holds a run with another discriminator "
         "(discriminator.init_args.ndf 8, now 16); give another --out, or the configuration that the run was started "
         "with"),
        (["--discriminator.init_args.norm", "group"], "(discriminator.init_args.norm \"batch\", now \"group\")"),
        (["--discriminator.init_args.with_spectral_norm", "true"], "with_spectral_norm false, now true"),
        (["--training.trainable", "[decoder.*]"], "another trainable"),
        (["--objective.learned_log_variance", "false"], "another learned_log_variance"),
        (["--training.max_steps", "2"], "is at step 3, past training.max_steps 2"),
    ],
)  # fmt: skip
def test_forbidden_changes_are_refused_by_name_and_leave_the_run_unchanged(
    change: list[str], words: str, begun: Path, recipe: Path
) -> None:
    before = files(begun)
    with pytest.raises(UserError) as refused:
        run(recipe, begun, *change)
    assert words in str(refused.value)
    assert files(begun) == before


@pytest.mark.slow
def test_other_images_are_refused_and_another_spelling_of_the_path_is_not(
    begun: Path, recipe: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    run(recipe, begun, "--data.train", "./images/", "--training.max_steps", "4")
    assert lines(begun, "train")[-1]["step"] == 4
    smooth_picture(9, 24, 20).save(images / "another.png")
    words = (
        r"another data .8 images, names and sizes .*, now 9 images.*--model\.init_args\.pretrained \S+/run/model to "
    )
    with pytest.raises(UserError, match=words):
        run(recipe, begun, "--training.max_steps", "5")


def test_refused_new_run_leaves_no_folder(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such"):
        run(recipe, tmp_path / "new" / "run", "--data.train", str(tmp_path / "nowhere"))
    assert not (tmp_path / "new").exists()


def test_model_without_a_checkpoint_is_not_overwritten(begun: Path, recipe: Path) -> None:
    shutil.rmtree(begun / "checkpoints")
    before = files(begun)
    with pytest.raises(UserError, match="has a model but no checkpoint to resume from"):
        run(recipe, begun)
    assert files(begun) == before


def test_rerun_of_a_finished_run_is_reported_and_writes_nothing(
    begun: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat() for path in begun.rglob("*")}
    capsys.readouterr()
    run(recipe, begun)
    words = capsys.readouterr().err
    assert "finished:  step 3 of 3; nothing is left to train" in words
    assert "add --training.max_steps 6, or any number above 3" in words
    assert f"model:     {begun / 'model'} (EMA weights of step 3)" in words
    assert "resuming" not in words
    after = {path: path.stat() for path in begun.rglob("*")}
    assert after.keys() == before.keys()
    assert all(after[path].st_mtime_ns == before[path].st_mtime_ns for path in before if path.is_file())
    run(recipe, begun, "--training.max_steps", "4")
    assert lines(begun, "train")[-1]["step"] == 4


def test_rerun_writes_a_missing_model_of_a_finished_run(
    begun: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = files(begun / "model")
    log = begun / "metrics.jsonl"
    text = log.read_text().splitlines()
    assert json.loads(text[-1])["kind"] == "finished"
    log.write_text("\n".join(text[:-1]) + "\n")
    (begun / "model" / "config.json").write_text("{}")
    run(recipe, begun)
    assert files(begun / "model") == expected
    assert "step 3 of 3; nothing is left to train" in capsys.readouterr().err


@pytest.mark.slow
def test_changed_settings_are_in_the_history(begun: Path, recipe: Path) -> None:
    history = begun / "history.jsonl"
    assert not history.exists()
    for more in (["--optimizer.learning_rate", "1e-8", "--optimizer.options.weight_decay", "0.1"], []):
        run(recipe, begun, "--training.max_steps", str(4 + (not more)), *more)
    first, second = [json.loads(line) for line in history.read_text().splitlines()]
    assert first["step"] == 3
    assert first["changes"] == {
        "optimizer.learning_rate": {"from": 1e-4, "to": 1e-8},
        "optimizer.options.weight_decay": {"from": "(not set)", "to": 0.1},
        "training.max_steps": {"from": 3, "to": 4},
    }
    assert (second["step"], second["changes"]["optimizer.learning_rate"]) == (4, {"from": 1e-8, "to": 1e-4})
    assert datetime.fromisoformat(first["time"]) <= datetime.fromisoformat(second["time"])


@pytest.mark.slow
def test_refused_start_leaves_the_log_as_it_was(begun: Path, recipe: Path) -> None:
    """Lines past the newest checkpoint are removed once all checks have passed."""
    with open(begun / "metrics.jsonl", "a") as log:
        log.write('{"step": 4, "kind": "train"}\n')
    before = files(begun)
    with pytest.raises(UserError, match=r"past training\.max_steps 2"):
        run(recipe, begun, "--training.max_steps", "2")
    assert files(begun) == before
    run(recipe, begun, "--training.max_steps", "4")
    assert [line["step"] for line in lines(begun, "train")].count(4) == 1


def test_lines_of_a_start_without_a_checkpoint_are_replaced_by_a_rerun(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 2, "kind": "train"}\n')
    run(recipe, out)
    assert [line["step"] for line in lines(out, "train")] == [2, 3]


def test_discriminator_that_never_starts_causes_a_warning(recipe: Path, tmp_path: Path) -> None:
    out = run(recipe, tmp_path / "late", "--objective.discriminator_start", "3")
    (alarm,) = [line for line in lines(out, "alarm") if line["alarm"] == "no_discriminator"]
    assert "starts at step 3, after the last step 3" in alarm["message"]


def test_older_checkpoint_is_compared_by_its_recorded_settings(begun: Path, recipe: Path) -> None:
    from ldm_ae.training.changes import check_identity

    check_identity(begun, {"seed": 0, "images": "./images"}, {"seed": 0, "data": "8 images"})
    with pytest.raises(UserError, match="another seed"):
        check_identity(begun, {"seed": 1}, {"seed": 0, "data": "8 images"})


def test_keys_of_a_newer_version_are_not_changes() -> None:
    old = {"a": 1, "b": {"class_path": "X"}, "out": "here"}
    new = {"a": 1, "b": None, "c": 3, "out": "there"}
    assert changed_settings(old, new) == {"b.class_path": ('"X"', "(not set)"), "b": ("(not set)", "null")}


def test_run_without_colour_conversion_reports_it_as_a_change() -> None:
    now = {"data": {"train": "x", "colour_profiles": "convert"}}
    assert changed_settings({"data": {"train": "x"}}, now) == {"data.colour_profiles": ('"ignore"', '"convert"')}
    assert changed_settings({"data": {"train": "x"}}, {"data": {"train": "x", "colour_profiles": "ignore"}}) == {}


def test_other_images_with_the_same_names_are_refused(begun: Path, recipe: Path, images: Path) -> None:
    before = files(begun)
    smooth_picture(77, 60, 64).save(images / "3.png")
    with pytest.raises(UserError, match="another data"):
        run(recipe, begun, "--training.max_steps", "5")
    assert files(begun) == before


def test_optimizer_option_that_needs_other_state_is_refused_by_name(begun: Path, recipe: Path) -> None:
    before = files(begun)
    with pytest.raises(UserError, match="its optimizer had amsgrad False, and this one has True"):
        run(recipe, begun, "--training.max_steps", "5", "--optimizer.options.amsgrad", "true")
    assert files(begun) == before


def test_new_option_is_logged_as_a_change(begun: Path, recipe: Path) -> None:
    run(recipe, begun, "--training.max_steps", "4", "--optimizer.options.weight_decay", "0.1")
    changed = {line["setting"]: (line["from"], line["to"]) for line in lines(begun, "change")}
    assert changed["optimizer.options.weight_decay"] == ("(not set)", "0.1")


@pytest.mark.slow
def test_run_folder_with_other_files_or_inside_the_images_is_refused(
    recipe: Path, images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "store.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds files that are not a run's .store\.json.; give a new folder"):
        run(recipe, other)
    assert [path.name for path in other.iterdir()] == ["store.json"]
    for out in (images, images / "run"):
        with pytest.raises(UserError, match="is inside the image folder"):
            run(recipe, out)
    assert not (images / "run").exists()
    logged = tmp_path / "logged"
    logged.mkdir()
    (logged / "train.log").write_text("")
    run(recipe, logged)
    assert (logged / "model").is_dir()


def test_suggested_accumulation_keeps_the_global_batch(begun: Path, recipe: Path) -> None:
    run(recipe, begun, "--training.batch_size", "1", "--training.accumulation", "4", "--training.max_steps", "4")
    assert lines(begun, "train")[-1]["step"] == 4


@pytest.mark.parametrize(
    ("batch_size", "processes", "words"),
    [
        (16, 1, "--training.batch_size 16 --training.accumulation 4"),
        (24, 2, "--training.batch_size 16 --training.accumulation 2"),
        (128, 1, "--training.batch_size 64 --training.accumulation 1"),
        (16, 3, "start a number of processes that divides 64, not 3"),
    ],
)
def test_refusal_suggests_options_for_the_global_batch(batch_size: int, processes: int, words: str) -> None:
    assert words in remedies(Path("run"), global_batch=64, batch_size=batch_size, processes=processes)["global_batch"]


def test_mismatched_network_weights_are_refused_by_tensor(tmp_path: Path) -> None:
    """No setting has changed here, as with another version of a plugin."""
    from safetensors.torch import save_file

    from ldm_ae.training.checkpoints.checkpoint import load_networks

    save_file({"weight": torch.zeros(2, 3)}, tmp_path / "part.safetensors")
    for network, words in (
        (torch.nn.Linear(3, 4, bias=False), r"expected weight of shape \[4, 3\], got \[2, 3\]"),
        (torch.nn.Linear(3, 2), "it lacks bias of the configured network"),
    ):
        with pytest.raises(UserError, match=words):
            load_networks(tmp_path, {"part": network})


def test_old_name_of_fp32_is_not_a_changed_setting(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("training: {precision: 'no', max_steps: 3}\n")
    before = saved_config(tmp_path)
    assert before is not None
    assert changed_settings(before, {"training": {"precision": "fp32", "max_steps": 3}}) == {}
    assert changed_settings(before, {"training": {"precision": "bf16", "max_steps": 3}}) == {
        "training.precision": ('"fp32"', '"bf16"')
    }
