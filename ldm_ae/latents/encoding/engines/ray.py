"""The encoder as a Ray Data job, for clusters where nothing like torchrun starts a process on each machine.

The process that was given the command keeps the store's lock, lists the units of work, and writes index and statistics
at the end. Each unit is a task of its own for one of several actors, one a GPU. An actor gets what `Job` holds once,
and encodes whole units by the function that a process without Ray uses, so that the files are the same. A unit whose
process dies is begun again in a new process; what was finished is recognized by its hash, as after any kill.

Where no cluster is named, Ray runs on this machine alone: without a dashboard, without a report of its use, open to
nobody without a token that dies with it, and with its session's folder in the system's folder for temporary files (its
sockets need a short path on a local disk), which goes when the work is done.
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
"""How often one unit is begun before it counts as what kills the processes."""
_SECONDS_BETWEEN_LOOKS = 1.0
_OBJECTS = 100_000_000
"""Bytes of a session's shared memory, besides the model."""
_LONGEST_FOLDER = 40
"""Letters; a socket's path may have 103, and Ray's own part of it takes 60."""
_OWN_VARIABLES = ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE")


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Runs an encoder's job on Ray; to be given to `encode_images`."""

    actors: int | None = None
    """How many processes encode. None for one on each GPU of the cluster; on CPUs it must be said."""
    address: str | None = None
    """Of a cluster, such as `auto` or `head:6379`. None for the one that this process is connected to, or that
    RAY_ADDRESS names, and if there is neither, for a Ray of its own."""

    def check(self, device: str) -> None:
        """UserError for what can be told without Ray, because starting it takes long."""
        if self.actors is not None and self.actors < 1:
            raise UserError(f"the number of Ray's actors is {self.actors}; it must be at least 1")
        if device.startswith("cuda:"):
            raise UserError(f"--device is {device}, but Ray deals out the GPUs; give --device cuda")
        self._refuse_without_number(self._on_cpus(device))

    def __call__(self, job: Job, units: range, progress: Progress | None) -> None:
        """Encode the units.

        Raises:
            RunError: the cluster cannot be reached, or a unit ends its process again and again.
            UserError: as in `encode_images`, or the cluster does not have the devices.
        """
        device = str(job.config.device)
        on_cpus = self._on_cpus(device)
        with _connected(self._address(), job):
            gpus = 0 if on_cpus else int(ray.cluster_resources().get("GPU", 0))
            if not gpus and device not in ("auto", "cpu"):
                raise UserError(f"--device is {device}, and the Ray cluster has no GPU")
            self._refuse_without_number(not gpus)
            self._run(job, units, progress, on_gpus=gpus > 0, actors=self.actors or gpus)

    def _address(self) -> str:
        return self.address or os.environ.get("RAY_ADDRESS", "local")

    def _on_cpus(self, device: str) -> bool:
        """Whether it is certain before Ray has started that no GPU will encode."""
        own = self._address() == "local" and not ray.is_initialized()
        return device == "cpu" or (own and pick_device(device).type == "cpu")

    def _refuse_without_number(self, on_cpus: bool) -> None:
        if on_cpus and self.actors is None:
            raise UserError("without a GPU, say how many processes are to encode: --ray-actors N, of one core each")

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
                        raise {"UserError": UserError, "RunError": RunError}[row["error"]](row["message"])
            except ray.exceptions.RayError as error:
                raise RunError(
                    f"Ray cannot go on: {reason(error)}. Give the same command again: finished files stay"
                ) from error


class _Tally:
    """What all actors have done so far."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._failures: dict[int, str] = {}
        self._images: dict[int, int] = {}

    def begin(self, unit: int) -> tuple[int, str]:
        """How often this unit has been begun before, and how that ended."""
        before = self._begun.get(unit, 0)
        self._begun[unit] = before + 1
        return before, self._failures.get(unit, "its process has ended; is there enough memory?")

    def fail(self, unit: int, text: str) -> None:
        """This unit has ended with an exception."""
        self._failures[unit] = text

    def add(self, unit: int, images: int) -> None:
        """So many images of the unit are done."""
        self._images[unit] = images

    def images(self) -> int:
        """Of all units, each image once."""
        return sum(self._images.values())


class _Actor:
    """One process that encodes."""

    def __init__(self, held: list[Any], tally: Any, device: str):
        self._held = held
        self._tally = tally
        self._device = device
        self._encode: Callable[[int], None] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One unit. What is told in words comes back as a row, because Ray would wrap an exception.

        After any other exception the process ends, since it may be the device or the memory that is broken, and Ray
        begins the unit again in a new one.
        """
        unit = int(batch["unit"][0])
        error, message = "", ""
        try:
            before, failure = ray.get(self._tally.begin.remote(unit))
            if before == _ATTEMPTS:
                raise RunError(f"file {unit} of the store could not be encoded in {before} attempts: {failure}")
            self._encode = self._encode or self._load()
            self._encode(unit)
        except (UserError, RunError) as told:
            error, message = type(told).__name__, str(told)
        except Exception as failed:  # noqa: BLE001 - shown here, told in the end, and never gone on from
            traceback.print_exc()
            sys.stderr.flush()
            ray.get(self._tally.fail.remote(unit, reason(failed)))
            os._exit(1)
        return {"unit": [unit], "error": [error], "message": [message]}

    def _load(self) -> Callable[[int], None]:
        job: Job = ray.get(self._held)[0]
        if job.working_folder.is_dir():
            os.chdir(job.working_folder)  # from where the images' names may be relative
        if not job.path.is_dir():
            raise UserError(
                f"{socket.gethostname()} does not see {job.path}; store and images must lie where every machine of the "
                "cluster has them under the same name"
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
    """Within it there is a Ray."""
    if ray.is_initialized():
        yield
        return
    own: AbstractContextManager[dict[str, Any]] = _own_session(job.model) if address == "local" else nullcontext({})
    with own as options:
        try:
            try:
                _knock(address)
                ray.init(address=address, logging_level=logging.ERROR, **options)
            except (OSError, RuntimeError, ValueError) as error:  # a ConnectionError is an OSError
                raise RunError(f"no Ray at {address}: {reason(error)}") from error
            yield
        finally:
            ray.shutdown()  # of what has started, even if not all has


def _knock(address: str) -> None:
    """OSError if nobody listens there, which Ray would find out after more than five minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _own_session(model: Autoencoder) -> Iterator[dict[str, Any]]:
    """Options of `ray.init` for a Ray of this command alone."""
    root = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    root = root if len(root) <= _LONGEST_FOLDER else "/tmp"
    before = {name: os.environ.get(name) for name in _OWN_VARIABLES}
    # Ray listens on every network interface and does what it is told, so that it wants a token, by default one that it
    # writes into the user's home; it says so itself in RAY_AUTH_MODE, which is therefore among those put back.
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
    """Within it the logger reports errors only."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _shown(progress: Progress | None, tally: Any, images: int) -> Iterator[None]:
    """Within it, and once at its end, the caller sees how many images are done."""
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
