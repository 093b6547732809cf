"""What every layout of single files must do; one that lies in `ldm_ae/models/loading/layouts` is here by itself."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm_ae.core.errors import UserError
from ldm_ae.models import AUTOENCODERS, load_autoencoder, model_hash
from ldm_ae.models.loading.layouts import LAYOUTS
from ldm_ae.models.loading.layouts.interface import Layout
from ldm_ae.models.loading.single_file import build_autoencoder, build_network, open_single_file

State = dict[str, Tensor]
PREFIXES = ("", "first_stage_model.", "vae.", "module.", "model.", "_orig_mod.", "module.first_stage_model.", "a.b.")
Case = tuple[Layout, str, State]


@pytest.fixture(params=LAYOUTS, scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    """A layout, a class of network, and a file's state dict: for each class of the layout's example."""
    layout = LAYOUTS[request.param]()
    found = layout.example()
    assert found
    return [(layout, kind, {key: v.contiguous() for key, v in state.items()}) for kind, state in found.items()]


def save(state: State, path: Path, prefix: str = "") -> Path:
    save_file({f"{prefix}{key}": value for key, value in state.items()}, path)
    return path


def test_every_layout_names_classes_that_open() -> None:
    for cls in LAYOUTS.classes():
        assert cls.marks, cls
        assert set(cls.class_names) <= set(AUTOENCODERS), cls
        assert set(cls().example()) <= set(cls.class_names)


def test_file_is_found_below_any_prefix(cases: list[Case], tmp_path: Path) -> None:
    for layout, kind, state in cases:
        expected = None
        for prefix in PREFIXES:
            path = save(state, tmp_path / "ae.safetensors", prefix)
            found = open_single_file(path)
            assert type(found.layout) is type(layout)
            assert found.class_name == kind
            assert found.place == prefix.replace("_orig_mod.", "").rstrip(".")
            assert found.excluded == 0
            expected = expected or model_hash(build_autoencoder(found))
        assert model_hash(build_autoencoder(found)) == expected


def test_no_other_layout_recognizes_the_keys(cases: list[Case]) -> None:
    for layout, _, state in cases:
        assert layout.recognizes(state)
        assert sum(mark in state for mark in layout.marks) > 1
        for cls in LAYOUTS.classes():
            if any(mark in state for mark in cls.marks) and cls is not type(layout):
                assert not cls().recognizes(state), cls


def test_opened_file_equals_the_folder_that_it_is_saved_as(cases: list[Case], tmp_path: Path) -> None:
    for _, kind, state in cases:
        model = load_autoencoder(save(state, tmp_path / "ae.safetensors"))
        assert type(model) is AUTOENCODERS[kind]
        assert type(model.net).__name__ == kind
        model.save_pretrained(tmp_path / "saved")
        again = load_autoencoder(tmp_path / "saved")
        assert model_hash(again) == model_hash(model)
        assert again.spec == model.spec
        factor = model.spec.latents.downsample_factor
        x = torch.rand(1, model.spec.pixels.channels, 2 * factor, 2 * factor) * 2 - 1
        with torch.no_grad():
            assert torch.equal(again.decode(again.encode(x).mode()), model.decode(model.encode(x).mode()))


def test_weights_of_other_precisions_become_float32(cases: list[Case], tmp_path: Path) -> None:
    for _, _, state in cases:
        half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        net = build_network(open_single_file(save(half, tmp_path / "ae.safetensors")))
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in net.state_dict().values())
        assert {tensor.device.type for tensor in (*net.parameters(), *net.buffers())} == {"cpu"}


def test_damaged_state_dicts_are_refused_by_key(cases: list[Case], tmp_path: Path) -> None:
    for layout, _, state in cases:
        last = max(
            key for key in state if key not in layout.marks and key.startswith("decoder.") and key.endswith("bias")
        )
        for change in ({}, {last: torch.zeros(7)}):
            damaged = {key: value for key, value in state.items() if key != last} | change
            with pytest.raises(UserError) as caught:
                build_autoencoder(open_single_file(save(damaged, tmp_path / "ae.safetensors")))
            assert last in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(UserError, match=r"decoder\.stranger"):
            build_autoencoder(open_single_file(save({**state, "decoder.stranger": torch.zeros(3)}, tmp_path / "x")))


def test_many_numbered_parts_are_refused_at_once(cases: list[Case], tmp_path: Path) -> None:
    """A header has room for a million names."""
    for layout, _, state in cases:
        key = next(key for key in sorted(state) if re.match(r"encoder\.(layers\.)?\w*\.?\d+\.", key))
        for numbers in (range(2000), (10**9,)):
            many = {re.sub(r"\d+", str(i), key, count=1): torch.zeros(1) for i in numbers}
            path = save(many | state, tmp_path / "ae.safetensors")
            started = time.monotonic()
            with pytest.raises(UserError) as caught:
                build_autoencoder(open_single_file(path))
            assert time.monotonic() - started < 20, layout  # seconds on a loaded machine
            assert len(str(caught.value).splitlines()) == 1


def test_empty_and_enormous_shapes_are_refused_in_one_line(cases: list[Case], tmp_path: Path) -> None:
    """A header may declare any shape of a tensor without numbers."""
    for _, _, state in cases:
        for shape in ((), (0, 2**40), (2**40, 0, 1, 1)):
            for key in sorted(state)[:: max(len(state) // 5, 1)]:
                if key.endswith("num_batches_tracked"):
                    continue
                with pytest.raises(UserError) as caught:
                    build_autoencoder(open_single_file(save({**state, key: torch.zeros(shape)}, tmp_path / "ae")))
                assert len(str(caught.value).splitlines()) == 1
