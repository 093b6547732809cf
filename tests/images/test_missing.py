"""Missing data within images: means that leave it out."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ldm_ae.images.missing import MISSING, fill, keep_missing, known, known_windows, mean_over_known
from tests.channels import GAPS, images


def test_value_of_missing_data_is_exact_in_half_precision() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert float(torch.tensor(MISSING, dtype=dtype)) == MISSING
    assert known(torch.tensor([-1.0, 1.0, MISSING])).tolist() == [True, True, False]


def test_filled_images_agree_where_data_is_missing() -> None:
    reconstructions, pixel_values = images(GAPS)
    reconstructions.requires_grad_()
    found, target = fill(reconstructions, pixel_values)
    where = known(pixel_values)
    assert torch.equal(found[~where], target[~where])
    assert torch.equal(found[where], reconstructions[where])
    (gradient,) = torch.autograd.grad(found.sum(), reconstructions)
    assert torch.equal(gradient != 0, where)


def test_mean_over_known_is_the_mean_of_the_means_of_images() -> None:
    reconstructions, pixel_values = images(GAPS)
    pixel_values[0, 0, :30] = MISSING  # images of unequal parts
    errors = (reconstructions - pixel_values).abs()
    expected = [float(error[known(image)].mean()) for error, image in zip(errors, pixel_values, strict=True)]
    torch.testing.assert_close(mean_over_known(errors, pixel_values), torch.tensor(expected).mean())
    assert float(mean_over_known(errors, torch.full_like(errors, MISSING))) == 0.0


def test_resized_images_are_means_of_known_data() -> None:
    pixel_values = torch.full((1, 1, 4, 4), 0.5)
    pixel_values[..., :1] = MISSING
    pixel_values[..., 0, 1] = MISSING  # three of the first 2x2, and two of the square below
    halved = keep_missing(lambda values: F.avg_pool2d(values, 2), pixel_values)
    assert halved.flatten().tolist() == [MISSING, 0.5, 0.5, 0.5]


def test_windows_are_known_if_all_of_their_elements_are() -> None:
    where = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    where[..., 0, 0] = False
    assert known_windows(where, 3).flatten().tolist() == [False] + [True] * 8
