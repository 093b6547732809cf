"""What users of other programs type, and the keys of this one that they mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ldm_ae.training.configuration.keys import of_phase, split_phase

_EPOCHS = "a run is counted in steps: --training.max_steps, with epochs x images / images of a step"
_RESUME = "to resume a run, rerun the same command: a run directory that exists is continued"
_GPUS = "one process trains on one GPU; for several start `torchrun --nproc-per-node N -m ldm_ae.cli train ...`"
_CLIP = "training.max_grad_norm"
_SEED = "seed"

HINTS = {
    # optimizer
    "lr": "optimizer.learning_rate",
    "learning_rate": "optimizer.learning_rate",
    "base_lr": "optimizer.learning_rate",
    "base_learning_rate": "optimizer.learning_rate",
    "scale_lr": "optimizer.scale_learning_rate",
    "lr_scheduler": "optimizer.schedule",
    "lr_warmup_steps": "optimizer.warmup_steps",
    "warmup_steps": "optimizer.warmup_steps",
    "weight_decay": "optimizer.options.weight_decay",
    "adam_weight_decay": "optimizer.options.weight_decay",
    "adam_beta1": "optimizer.options.betas",
    "adam_beta2": "optimizer.options.betas",
    "betas": "optimizer.options.betas",
    "adam_epsilon": "optimizer.options.eps",
    "eps": "optimizer.options.eps",
    "param_groups": "optimizer.groups",
    "no_decay_norms": "optimizer.decay_norms_and_biases false",
    "encoder_lr": "optimizer.groups",
    "decoder_lr": "optimizer.groups",
    "use_8bit_adam": "there is no 8-bit optimizer; --optimizer names one of torch.optim, such as adamw",
    "disc_lr": "discriminator_optimizer.learning_rate",
    # length and batches
    "max_steps": "training.max_steps",
    "max_train_steps": "training.max_steps",
    "steps": "training.max_steps",
    "num_steps": "training.max_steps",
    "iterations": "training.max_steps",
    "max_time": "training.max_minutes",
    "epochs": _EPOCHS,
    "max_epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "num_train_epochs": _EPOCHS,
    "batch_size": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "per_device_train_batch_size": "training.batch_size",
    "gradient_accumulation_steps": "training.accumulation",
    "accumulate_grad_batches": "training.accumulation",
    "grad_accum": "training.accumulation",
    # memory, speed and numerics
    "precision": "training.precision",
    "mixed_precision": "training.precision",
    "dtype": "training.precision",
    "fp16": "training.precision fp16",
    "bf16": "training.precision bf16",
    "gradient_checkpointing": "training.gradient_checkpointing",
    "compile": "training.compile",
    "torch_compile": "training.compile",
    "max_grad_norm": _CLIP,
    "gradient_clip_val": _CLIP,
    "grad_clip": _CLIP,
    "device": "the device is picked automatically; CUDA_VISIBLE_DEVICES= (empty) leaves the CPU alone",
    "gpus": _GPUS,
    "devices": _GPUS,
    "num_gpus": _GPUS,
    # EMA, logging and saving
    "ema": "training.ema_decay",
    "use_ema": "training.ema_decay",
    "ema_decay": "training.ema_decay",
    "phema": "training.power_ema",
    "post_hoc_ema": "training.power_ema",
    "ema_std": "training.power_ema_lengths",
    "report_to": "training.trackers",
    "log_with": "training.trackers",
    "logger": "training.trackers",
    "tracker_project_name": "training.project",
    "wandb_project": "training.project",
    "project_name": "training.project",
    "run_name": "training.run_name",
    "wandb_name": "training.run_name",
    "experiment_name": "training.run_name",
    "wandb": "training.trackers",
    "logging_steps": "training.log_every",
    "log_every_n_steps": "training.log_every",
    "log_every": "training.log_every",
    "checkpointing_steps": "training.checkpoint_every",
    "save_steps": "training.checkpoint_every",
    "save_every": "training.checkpoint_every",
    "checkpoints_total_limit": "training.keep_checkpoints",
    "save_top_k": "training.keep_checkpoints",
    "validation_steps": "training.validate_every",
    "val_check_interval": "training.validate_every",
    "eval_steps": "training.validate_every",
    "monitor": "training.best_metric",
    "resume": _RESUME,
    "resume_from": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "ckpt_path": _RESUME,
    "ckpt": _RESUME,
    "overwrite": "a run directory is never replaced; give another --out, or remove the old one",
    "output_dir": "out",
    "logdir": "out",
    "log_dir": "out",
    "save_dir": "out",
    "default_root_dir": "out",
    "output": "out",
    "o": "out",
    "random_seed": _SEED,
    "seed_everything": _SEED,
    "manual_seed": _SEED,
    # images
    "train_data_dir": "data.train",
    "data_dir": "data.train",
    "data_path": "data.train",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "images": "data.train",
    "train": "data.train",
    "val_data_dir": "data.validation",
    "validation": "data.validation",
    "resolution": "data.resolution",
    "image_size": "data.resolution",
    "size": "data.resolution",
    "enable_bucket": "data.area",
    "aspect_ratio_bucketing": "data.area",
    "bucket_reso_steps": "data.multiple",
    "center_crop": "data.crop center",
    "random_crop": "data.crop random",
    "random_flip": "data.flip",
    "num_workers": "data.workers",
    "dataloader_num_workers": "data.workers",
    "workers": "data.workers",
    "max_train_samples": "there is no such option; make a folder with fewer images",
    # model and losses
    "pretrained_model_name_or_path": "model.init_args.pretrained",
    "pretrained": "model.init_args.pretrained",
    "init_from": "model.init_args.pretrained",
    "embed_dim": "model.init_args.latent_channels",
    "z_channels": "model.init_args.latent_channels",
    "latent_channels": "model.init_args.latent_channels",
    "block_out_channels": "model.init_args.block_out_channels",
    "ch": "model.init_args.block_out_channels",
    "ch_mult": "model.init_args.block_out_channels",
    "n_embed": "model.init_args.quantizer.init_args.codebook_size",
    "num_vq_embeddings": "model.init_args.quantizer.init_args.codebook_size",
    "codebook_size": "model.init_args.quantizer.init_args.codebook_size",
    "kl_weight": "objective.regularization_weights.kl",
    "kl_scale": "objective.regularization_weights.kl",
    "beta": "objective.regularization_weights.kl",
    "codebook_weight": "objective.regularization_weights.codebook",
    "commitment_weight": "objective.regularization_weights.commitment",
    "perceptual_loss": "objective.perceptual",
    "lpips": "objective.perceptual lpips",
    "lpips_weight": "objective.perceptual_weight",
    "lpips_scale": "objective.perceptual_weight",
    "perceptual_weight": "objective.perceptual_weight",
    "rec_loss": "objective.reconstruction",
    "reconstruction_loss": "objective.reconstruction",
    "pixel_loss": "objective.reconstruction",
    "disc_loss": "objective.adversarial",
    "gan_loss": "objective.adversarial",
    "disc_start": "objective.discriminator_start",
    "discriminator_iter_start": "objective.discriminator_start",
    "disc_weight": "objective.gan_weight",
    "disc_factor": "objective.gan_weight",
    "discriminator_weight": "objective.gan_weight",
    "gan_weight": "objective.gan_weight",
    "disc_num_layers": "discriminator.init_args.n_layers",
    "learn_logvar": "objective.learned_log_variance",
    "logvar_init": "objective.learned_log_variance",
}
"""A key, possibly with a value, or a sentence for each name. A name stands for every key that ends with it: `kl_weight`
for `--kl_weight` and `--objective.kl_weight`."""


def hint(key: str, known: Iterable[str], dashes: str = "--") -> str:
    """Return the part of a message that helps with an unknown key: what it is here, or the nearest spelling.

    Args:
        key: The unknown key, such as `trainin.lr`.
        known: The full keys, and names of arguments.
        dashes: What a key begins with where the unknown one stands: nothing in a file.
    """
    known = list(known)
    name = key.lower().replace("-", "_")
    owner, _, leaf = name.rpartition(".")
    number, _ = split_phase(name)
    prefix = "" if number is None else of_phase(number)
    leaves = {full.rpartition(".")[2]: full for full in reversed(known)}
    if leaf not in leaves and (found := HINTS.get(leaf)):
        if not is_key(found):
            return f"; {found}"
        beside = f"{owner}.{found.rpartition('.')[2]}"  # `discriminator_optimizer.lr`
        return f"; use {dashes}{beside if beside in known else f'{prefix}{found}'}"
    # Arguments of a class have no full keys: there the class's key is not a part of the comparison.
    compared = name if any("." in full for full in known) else leaf
    if near := [full for full in difflib.get_close_matches(compared, known) if not name.startswith(f"{full}.")]:
        return f"; did you mean '{near[0]}'?"
    if near := difflib.get_close_matches(leaf, leaves, n=1):
        return f"; did you mean '{leaves[near[0]]}'?"
    return "; `ldm-ae train --help` lists the options"


def is_key(hinted: str) -> bool:
    """Return whether a hint is a key, possibly with a value, and not a sentence."""
    return len(hinted.split()) <= 2
