"""CIEDE2000 against the pairs that its authors published, and CIELAB against scikit-image."""

from __future__ import annotations

import pytest
import skimage.color
import torch

from ldm_ae.evaluation.metrics.ciede2000 import CIEDE2000, SATURATED_CHROMA
from ldm_ae.images.colour_difference import chroma, ciede2000, srgb_to_lab
from ldm_ae.images.uint8 import from_levels

# Table 1 of Sharma et al. (2005): L, a and b of both colours, and their difference. The pairs test the hue's
# discontinuities and greys.
PAIRS = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_ciede2000_equals_the_published_pairs_in_both_orders() -> None:
    table = torch.tensor([float(word) for word in PAIRS.split()], dtype=torch.float64).view(-1, 7)
    assert len(table) == 34
    one, other = (table[:, part].view(-1, 3, 1, 1) for part in (slice(0, 3), slice(3, 6)))
    for pair in ((one, other), (other, one)):
        # the table has four decimals
        assert ciede2000(*pair).flatten().tolist() == pytest.approx(table[:, 6].tolist(), abs=5.1e-5)


def test_lab_and_ciede2000_of_images_equal_scikit_image() -> None:
    levels = torch.randint(0, 256, (2, 3, 24, 24), generator=torch.Generator().manual_seed(0))
    levels[:, :, 0] = levels[:, :1, 0]  # greys
    levels[1, :, 1] = levels[0, :, 1]  # equal colours
    ours = srgb_to_lab(from_levels(levels))
    theirs = [skimage.color.rgb2lab(image.permute(1, 2, 0).numpy().astype("uint8")) for image in levels]
    # its matrix and white have six digits, the standard's four
    torch.testing.assert_close(ours[0].permute(1, 2, 0).double(), torch.from_numpy(theirs[0]), atol=0.05, rtol=0)
    assert float(chroma(ours)[:, 0].max()) < 1e-3  # float32 rounding, times 500
    expected = torch.from_numpy(skimage.color.deltaE_ciede2000(*theirs))
    torch.testing.assert_close(ciede2000(ours[:1], ours[1:])[0].double(), expected, atol=0.02, rtol=0)
    assert float(ciede2000(ours[:1], ours[1:])[0, 1].abs().max()) == 0.0


def test_saturated_score_is_over_the_saturated_pixels_of_all_images() -> None:
    red, grey, brown = (torch.tensor(colour) for colour in ((200, 30, 30), (120, 120, 120), (120, 100, 80)))
    levels = torch.stack([grey, brown]).view(2, 3, 1, 1).repeat(1, 1, 8, 8)
    levels[0, :, :2] = red.view(3, 1, 1)
    images = from_levels(levels)
    changed = images.clone()
    changed[0, :, :2] = from_levels(torch.tensor((180, 60, 60))).view(3, 1, 1)
    changed[1] = from_levels(grey).view(3, 1, 1)
    of_red, of_brown = (
        float(ciede2000(srgb_to_lab(changed), srgb_to_lab(images))[place]) for place in ((0, 0, 0), (1, 0, 0))
    )
    assert float(chroma(srgb_to_lab(images))[1].max()) < SATURATED_CHROMA
    metric = CIEDE2000()
    values = [metric.update(changed[i : i + 1], images[i : i + 1])["ciede2000"].item() for i in range(2)]
    assert values == pytest.approx([of_red / 4, of_brown], rel=1e-5)
    found = metric.compute()
    assert found["ciede2000"] == pytest.approx(sum(values) / 2)
    assert found["ciede2000_saturated"] == pytest.approx(of_red, rel=1e-5)
    assert metric.details() == {"saturated_fraction": 16 / 128}
    metric.reset()
    metric.update(changed[1:], images[1:])
    assert [*metric.compute()] == ["ciede2000"]  # no pixel is saturated
