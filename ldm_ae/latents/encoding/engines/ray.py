"""The encoder as a Ray Data job, for clusters where nothing like torchrun starts a process on each machine.

The process that runs the command keeps the store's lock, lists the units of work, and writes the index and the
statistics at the end. Each unit is a separate task for one of several actors, one per GPU. An actor receives the
contents of `Job` once and encodes whole units by the function that a process without Ray uses, so the files are the
same. A unit whose process dies is restarted in a new process; finished shards are recognized by their hashes, as after
any kill.

If no cluster is named, Ray runs on this machine alone: without a dashboard and without usage reports, closed to anyone
without a token that is valid for this session only, and with its session's folder in the system's folder for temporary
files (its sockets need a short path on a local disk), which is removed when the work is done.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ldm_ae.core.devices import pick_device
from ldm_ae.core.errors import RunError, UserError, reason
from ldm_ae.latents.encoding.encoder import encode_units
from ldm_ae.latents.encoding.jobs import Job, Progress
from ldm_ae.latents.store.provenance import inference_copy
from ldm_ae.latents.store.source_hashes import HashingSource, SourceHashes
from ldm_ae.latents.store.writer import StoreWriter
from ldm_ae.models import Autoencoder

try:
    import ray
    import ray.data
except ModuleNotFoundError as error:
    raise UserError(
        f"--engine ray needs the package {error.name}, which is missing; pip install 'ldm_ae[ray]'"
    ) from error

_ATTEMPTS = 4
"""Number of times that one unit is started before it is considered to kill its processes."""
_SECONDS_BETWEEN_LOOKS = 1.0
_OBJECTS = 100_000_000
"""Bytes of a session's shared memory, in addition to the model."""
_LONGEST_FOLDER = 40
"""Maximum number of characters; a socket's path may have 103, and Ray's own part of it takes 60."""
_OWN_VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """An engine for `encode_images` that runs the encoder's job on Ray."""

    actors: int | None = None
    """Number of processes that encode. None for one on each GPU of the cluster; on CPUs it is required."""
    address: str | None = None
    """Address of a cluster, such as `auto` or `head:6379`. None for the cluster to which this process is connected, or
    that RAY_ADDRESS names; if there is neither, Ray is started on this machine."""

    def check(self, device: str) -> None:
        """Raise `UserError` for errors that can be detected without Ray, because starting it takes long."""
        if self.actors is not None and self.actors < 1:
            raise UserError(f"the number of Ray's actors is {self.actors}; it must be at least 1")
        if device.startswith("cuda:"):
            raise UserError(f"--device is {device}, but Ray assigns the GPUs; give --device cuda")
        self._refuse_without_number(self._on_cpus(device))

    def __call__(self, job: Job, units: range, progress: Progress | None) -> None:
        """Encode the units.

        Raises:
            RunError: The cluster cannot be reached, or a unit repeatedly ends its process.
            UserError: As in `encode_images`, or the cluster does not have the devices.
        """
        device = str(job.config.device)
        on_cpus = self._on_cpus(device)
        with _connected(self._address(), job):
            gpus = 0 if on_cpus else int(ray.cluster_resources().get("GPU", 0))
            if not gpus and device not in ("auto", "cpu"):
                raise UserError(f"--device is {device}, but the Ray cluster has no GPU")
            self._refuse_without_number(not gpus)
            self._run(job, units, progress, on_gpus=gpus > 0, actors=self.actors or gpus)

    def _address(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS", "local")

    def _on_cpus(self, device: str) -> bool:
        """Return whether it is certain before Ray has started that no GPU will encode."""
        own = self._address() == "local" and not ray.is_initialized()
        return device == "cpu" or (own and pick_device(device).type == "cpu")

    def _refuse_without_number(self, on_cpus: bool) -> None:
        if on_cpus and self.actors is None:
            raise UserError("without a GPU, give the number of encoding processes: --ray-actors N, of one core each")

    def _run(self, job: Job, units: range, progress: Progress | None, *, on_gpus: bool, actors: int) -> None:
        tally = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tally).remote()
        held = ray.put(job)
        blocks = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
        results = blocks.map_batches(
            _Actor,
            fn_constructor_args=([held], tally, "auto" if on_gpus else "cpu"),  # Ray does not look into a list
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if on_gpus else 0,
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
        )
        results.context.enable_progress_bars = False
        with _quiet(logging.getLogger("ray.data")), _shown(progress, tally, job.request.images):
            try:
                for row in results.iter_rows():
                    if row["error"]:
                        raise (UserError if row["error"] == "UserError" else RunError)(row["message"])
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"Ray cannot continue: {reason(error)}. Run the same command again: finished files are kept"
                ) from error


class _Tally:
    """The progress of all actors."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._failures: dict[int, str] = {}
        self._images: dict[int, int] = {}

    def begin(self, unit: int) -> tuple[int, str]:
        """Return how often this unit has been started before, and how that ended."""
        before = self._begun.get(unit, 0)
        self._begun[unit] = before + 1
        return before, self._failures.get(unit, "its process has ended; is there enough memory?")

    def fail(self, unit: int, text: str) -> None:
        """Record that this unit has ended with an exception."""
        self._failures[unit] = text

    def add(self, unit: int, images: int) -> None:
        """Record that this number of the unit's images is done."""
        self._images[unit] = images

    def images(self) -> int:
        """Return the number of images done over all units, each image counted once."""
        return sum(self._images.values())


class _Actor:
    """One encoding process."""

    def __init__(self, held: list[Any], tally: Any, device: str):
        self._held = held
        self._tally = tally
        self._device = device
        self._encode: Callable[[int], None] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode one unit. An error that is meant for the user is returned as a row, because Ray would wrap it.

        After any other exception the process ends, since the device or the memory may be broken, and Ray restarts the
        unit in a new process.
        """
        unit = int(batch["unit"][0])
        error, message = "", ""
        try:
            before, failure = ray.get(self._tally.begin.remote(unit))
            if before == _ATTEMPTS:
                raise RunError(f"file {unit} of the store could not be encoded in {before} attempts: {failure}")
            self._encode = self._encode or self._load()
            self._encode(unit)
        except (UserError, RunError) as raised:
            error = "UserError" if isinstance(raised, UserError) else "RunError"  # or a subclass of it
            message = str(raised)
        except Exception as failed:  # noqa: BLE001 - printed here, reported in the end; the process then ends
            traceback.print_exc()
            sys.stderr.flush()
            ray.get(self._tally.fail.remote(unit, reason(failed)))
            os._exit(1)
        return {"unit": [unit], "error": [error], "message": [message]}

    def _load(self) -> Callable[[int], None]:
        job: Job = ray.get(self._held)[0]
        if job.working_folder.is_dir():
            os.chdir(job.working_folder)  # The images' names may be relative to it.
        if not job.path.is_dir():
            raise UserError(
                f"{socket.gethostname()} cannot find {job.path}; store and images must have the same path on every "
                "machine of the cluster"
            )
        codebook = job.model.codebook
        look_up = None if codebook is None else codebook.latents
        writer = StoreWriter(job.path, job.request, plan=job.plan, look_up=look_up)
        model = inference_copy(
            job.model, device=self._device, precision=job.request.precision, compiled=job.request.compiled
        )
        source = HashingSource(job.source)
        source_hashes = SourceHashes(source, workers=job.config.workers, check=job.config.check)

        def encode(unit: int) -> None:
            encode_units(
                writer, model, source, source_hashes, job.transform, job.config, range(unit, unit + 1),
                lambda done, _: self._tally.add.remote(unit, done),
            )  # fmt: skip

        return encode


@contextmanager
def _connected(address: str, job: Job) -> Iterator[None]:
    """Provide a connection to Ray within the context."""
    if ray.is_initialized():
        yield
        return
    own: AbstractContextManager[dict[str, Any]] = _own_session(job.model) if address == "local" else nullcontext({})
    with own as options:
        try:
            try:
                _require_listener(address)
                ray.init(address=address, logging_level=logging.ERROR, **options)
            except (OSError, RuntimeError, ValueError) as error:  # A ConnectionError is an OSError.
                raise RunError(f"no Ray cluster at {address}: {reason(error)}") from error
            yield
        finally:
            ray.shutdown()  # Shut down all that has started, even if the start was incomplete.


def _require_listener(address: str) -> None:
    """Raise `OSError` if nothing listens there, which Ray would detect only after more than five minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _own_session(model: Autoencoder) -> Iterator[dict[str, Any]]:
    """Provide the options of `ray.init` for a Ray session of this command alone."""
    root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    root = root if len(root) <= _LONGEST_FOLDER else "/tmp"
    before = {name: os.environ.get(name) for name in _OWN_VARIABLES}
    # Ray listens on every network interface and executes any request, so it requires a token, by default one that it
    # writes into the user's home. It sets RAY_AUTH_MODE itself, which is therefore among the restored variables.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    size = sum(parameter.nbytes for parameter in model.parameters())
    try:
        with tempfile.TemporaryDirectory(prefix="ldm-ae-ray-", dir=root, ignore_cleanup_errors=True) as folder:
            yield {"include_dashboard": False, "object_store_memory": _OBJECTS + 2 * size, "_temp_dir": folder}
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Report only the logger's errors within the context."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _shown(progress: Progress | None, tally: Any, images: int) -> Iterator[None]:
    """Call `progress` with the number of images done, within the context and once at its end."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(_SECONDS_BETWEEN_LOOKS):
            progress(ray.get(tally.images.remote()), images)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    progress(images, images)
