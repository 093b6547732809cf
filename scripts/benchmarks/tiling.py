"""Memory and time of large images: whole, in exact bands and in blended tiles, each in its own process.

The network is an AutoencoderKL with random weights, in float32 unless `--precision` states otherwise, prepared by
`for_inference`. One call is measured, after a small one: peak memory relative to the memory before it, wall-clock and
processor time, and the largest difference from the whole image's result relative to its largest value.

`--count` computes nothing: it runs the network on tensors without data and adds up the bytes of those that exist at a
time, for sizes that this machine cannot compute. Weights and the scratch memory of convolutions are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import environment, peak_memory, start_peak_memory
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm_ae.images.pixels import images_in_range
from ldm_ae.models import Autoencoder, KLAutoencoder, Tiled, for_inference, pick_device

WIDTHS = (128, 256, 512, 512)
METHODS = ("whole", "exact", "blended")
WORKS = ("decode", "encode")


def prepared(method: str, options: argparse.Namespace) -> Autoencoder:
    """Return the network, which computes images by one of `METHODS`."""
    torch.manual_seed(0)
    model = KLAutoencoder(block_out_channels=tuple(options.widths))
    ready = for_inference(model, device=options.device, precision=options.precision)
    return ready if method == "whole" else Tiled(ready, tile=options.tile, exact=method == "exact")


@torch.inference_mode()
def measure(method: str, work: str, options: argparse.Namespace) -> tuple[dict[str, float], torch.Tensor]:
    """Return seconds, processor seconds and MiB of one call, and its result."""
    device = pick_device(options.device)
    model = prepared(method, options)
    factor = model.latent_spec.downsample_factor
    generator = torch.Generator().manual_seed(1)
    if work == "decode":
        call, side, values = model.decode, 8, torch.randn(1, 4, *[options.size // factor] * 2, generator=generator)
    else:
        call, side, values = lambda x: model.encode(x).mode(), 64, torch.rand(
            1, 3, options.size, options.size, generator=generator
        ) * 2 - 1  # fmt: skip
    values = values.to(device)
    call(values[..., :side, :side])  # libraries allocate in the first call
    before = start_peak_memory(device)
    started, processor = time.perf_counter(), time.process_time()
    result = call(values)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = {"seconds": time.perf_counter() - started, "processor": time.process_time() - processor}
    return seconds | {"MiB": (peak_memory(device) - before) / 2**20}, result.cpu()


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations within the context create, while they exist."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live.setdefault(reference.cdata, (reference, storage.nbytes()))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


def count(method: str, work: str, *, size: int, tile: int, widths: Sequence[int]) -> int:
    """Return the bytes of the tensors that exist at a time, at most, in one call on tensors without data."""
    with torch.device("meta"):
        model = KLAutoencoder(block_out_channels=tuple(widths)).eval().requires_grad_(False)
        factor = model.latent_spec.downsample_factor
        pixels, latents = torch.empty(1, 3, size, size), torch.empty(1, 4, size // factor, size // factor)
    tiled = model if method == "whole" else Tiled(model, tile=tile, exact=method == "exact")
    with LiveTensors() as live, torch.inference_mode(), images_in_range():
        if work == "decode":
            tiled.decode(latents)
        else:
            tiled.encode(pixels).mode()
    return live.peak


def counted(options: argparse.Namespace) -> list[str]:
    """Return the lines of a Markdown table of `count`."""
    lines = ["| work | memory of tensors, MiB | of the whole image |", "|---|---|---|"]
    for work in options.works:
        found: dict[str, int] = {}
        for method in options.methods:
            found[method] = count(method, work, size=options.size, tile=options.tile, widths=options.widths)
            ratio = f"{found[method] / found['whole']:.2f}" if "whole" in found else ""
            lines.append(f"| {work}, {method} | {found[method] >> 20} | {ratio} |")
    return lines


def row(work: str, method: str, found: dict[str, float], whole: dict[str, float] | None) -> str:
    """Return a line of the table; ratios are to the whole image, where that was measured."""
    cells = [f"{found[name]:.{0 if name == 'MiB' else 1}f}" for name in ("seconds", "processor", "MiB")]
    if whole is not None and method != "whole":
        times, memory = found["processor"] / whole["processor"], found["MiB"] / whole["MiB"]
        cells[1] += f" ({times:.2f} ×)"
        cells[2] += f" ({memory:.2f} ×)"
    cells.append(f"{found['difference']:.1e}" if "difference" in found else "")
    return f"| {work}, {method} | {' | '.join(cells)} |"


def table(options: argparse.Namespace) -> Iterator[str]:
    """Measure every method in a process of its own, and yield the lines of a Markdown table."""
    yield from ("| work | s | processor time, s | additional memory, MiB | difference |", "|---|---|---|---|---|")
    for work in options.works:
        found: dict[str, dict[str, float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            results: dict[str, torch.Tensor] = {}
            for method in options.methods:
                file = Path(folder) / f"{method}.safetensors"
                command = [sys.executable, *sys.argv, "--serve", f"{work} {method} {file}"]
                answer: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
                found[method], results[method] = answer, load_file(file)["result"]
                if "whole" in results and method != "whole":
                    whole = results["whole"]
                    found[method]["difference"] = float((results[method] - whole).abs().max() / whole.abs().max())
                yield row(work, method, found[method], found.get("whole"))


def main() -> None:
    """Print the table; in a process for one method, its numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="side of the image in pixels (default %(default)s)")
    parser.add_argument("--tile", type=int, default=256, help="side of a tile in pixels (default %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="channels of each level")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", action="store_true", help="count the memory of tensors, and compute nothing")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        work, method, file = options.serve.split(" ", 2)
        numbers, result = measure(method, work, options)
        save_file({"result": result.contiguous()}, file)
        print(json.dumps(numbers))
        return
    widths = ", ".join(map(str, options.widths))
    print(f"### {options.size}², tiles of {options.tile}², widths {widths}, {options.precision}\n")
    if options.count:
        print("\n".join(counted(options)))
        return
    print(f"{environment(pick_device(options.device))}\n", flush=True)
    for line in table(options):
        print(line, flush=True)


if __name__ == "__main__":
    main()
