"""Decoders of distilled autoencoders on the latents of their teacher: scores, and times in turn.

    python scripts/benchmarks/students.py --teacher kl-f8c4-small --student runs/kl_f8c4_small_fast --test PHOTOS

The teacher encodes each image once. Every decoder decodes the same latents, in the order of `--student` and its reverse
by turns; times are the medians of the ratios of two times of the same image.
"""

from __future__ import annotations

import argparse
import sys
import time
from statistics import median

import torch
from measuring import environment
from short_runs import Protocol, protocol_arguments

from ldm_ae.core.errors import exit_status
from ldm_ae.evaluation.metric_sets import perceptual_network, validation_metrics
from ldm_ae.images.uint8 import rounded
from ldm_ae.models import for_inference, load_autoencoder, pick_device

WARM_UP = 2


@torch.inference_mode()
def measure(names: list[str], protocol: Protocol, precision: str, device: torch.device) -> dict[str, dict[str, float]]:
    """Return scores, `seconds` and `ratio` (to the first) of the decoder of each name; the first is the teacher."""
    teacher = load_autoencoder(names[0], device=device)
    models = {name: for_inference(load_autoencoder(name), device=device, precision=precision) for name in names}
    metrics = {name: validation_metrics(perceptual_network(protocol.perceptual)) for name in names}
    for metric in (metric for chosen in metrics.values() for metric in chosen):
        metric.reset()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i, batch in enumerate(protocol.loader()):
        pixel_values = batch.pixel_values.to(device)
        scaled = teacher.scale(teacher.encode(pixel_values).mode())
        for name in names if i % 2 else names[::-1]:
            latents = models[name].unscale(scaled)
            started = time.perf_counter()
            decoded = models[name].decode(latents)
            if device.type != "cpu":
                torch.accelerator.synchronize()
            if i >= WARM_UP:
                times[name].append(time.perf_counter() - started)
            for metric in metrics[name]:
                metric.update(rounded(decoded).cpu(), rounded(pixel_values).cpu())
    found: dict[str, dict[str, float]] = {}
    for name in names:
        found[name] = {key: float(value) for metric in metrics[name] for key, value in metric.compute().items()}
        found[name]["seconds"] = median(times[name])
        found[name]["ratio"] = median(own / other for own, other in zip(times[name], times[names[0]], strict=True))
    return found


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", required=True, help="MODEL whose latents are decoded")
    parser.add_argument("--student", required=True, action="append", help="MODEL with another decoder (repeatable)")
    parser.add_argument("--precision", default="fp32", help="precision of the decoders (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    protocol_arguments(parser)
    options = parser.parse_args()
    protocol, device = (
        Protocol(options.test, options.size, options.perceptual, options.limit),
        pick_device(options.device),
    )
    found = measure([options.teacher, *options.student], protocol, options.precision, device)
    print(f"{protocol}, {options.precision}; {torch.get_num_threads()} threads; {environment(device)}\n")
    names = [name for name in found[options.teacher] if name not in ("seconds", "ratio")]
    print(f"| decoder | {' | '.join(names)} | s an image | of the teacher's |\n|---|{'---|' * (len(names) + 2)}")
    for model, scores in found.items():
        cells = [f"{scores[name]:.{2 if name == 'psnr' else 3}f}" for name in names]
        print(f"| {model} | {' | '.join(cells)} | {scores['seconds']:.3f} | {scores['ratio']:.2f} |")


if __name__ == "__main__":
    sys.exit(exit_status(main, "students"))
