"""One run directory, one run, of one or several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ldm_ae.core.errors import UserError
from ldm_ae.io.locks import only_writer


@contextmanager
def only_run(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the folder's lock in the main process; where it is refused, all processes raise the same UserError."""
    with ExitStack() as stack:
        refused = ""
        if accelerator.is_main_process:
            try:
                stack.enter_context(only_writer(folder))
            except UserError as error:
                refused = str(error)
        if refusal := broadcast_object_list([refused])[0]:
            raise UserError(refusal)
        yield
