"""Classification accuracy score. Source: Ravuri and Vinyals, Classification Accuracy Score for Conditional Generative
Models, arXiv 1905.10887."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_ae.representation.encoded import batch_size

WIDTH, BATCH, LEARNING_RATE = 32, 64, 2e-3


def classification_accuracy_score(
    generate: Callable[[Tensor], Tensor], training_labels: Tensor, images: Tensor, labels: Tensor, *, steps: int = 500,
    seed: int = 0,
) -> float:  # fmt: skip
    """Return the accuracy on real images of a classifier that was trained on generated ones.

    Compare it with `classifier_accuracy` of real training images: a lower score means that the generator misses parts
    of the classes, or confuses them.

    Args:
        generate: Function from labels (B,) int64 to images (B, C, H, W) in [-1, 1].
        training_labels: (N,) int64, labels of the images to generate: those of the real training images, so that the
            classes have the same frequencies.
        images: (M, C, H, W), real images that the generator was not trained on.
        labels: (M,) int64.
        steps: Updates of the classifier.
        seed: Seed of the classifier.
    """
    generated = torch.cat([generate(part) for part in training_labels.split(batch_size(images))])
    return classifier_accuracy(generated, training_labels, images, labels, steps=steps, seed=seed)


def classifier_accuracy(
    training_images: Tensor, training_labels: Tensor, images: Tensor, labels: Tensor, *, steps: int = 500, seed: int = 0
) -> float:
    """Train a small convolutional classifier and return its accuracy on other images.

    Two 3x3 convolutions of stride 2 with group normalization and a linear layer, Adam with a cosine from 2e-3 to 0,
    batches of 64.

    Args:
        training_images: (N, C, H, W) in [-1, 1].
        training_labels: (N,) int64.
        images: (M, C, H, W) that are classified.
        labels: (M,) int64.
        steps: Updates.
        seed: Seed of the weights and the order of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = int(max(training_labels.max(), labels.max())) + 1
        network = _classifier(training_images.shape[1:], classes).to(training_images.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(training_images), (BATCH,), generator=generator).to(training_images.device)
            optimizer.zero_grad()
            F.cross_entropy(network(training_images[rows]), training_labels.to(rows.device)[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(dim=1) for part in images.split(256)])
    return float((predicted.cpu() == labels.cpu()).float().mean())


def _classifier(shape: torch.Size, classes: int) -> nn.Module:
    channels, height, width = shape
    sides = [-(-side // 4) for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1), nn.GroupNorm(8, WIDTH), nn.ReLU(),
        nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * WIDTH), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * WIDTH * sides[0] * sides[1], classes),
    )  # fmt: skip
