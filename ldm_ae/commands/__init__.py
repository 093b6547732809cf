"""The commands of `ldm-ae`: each file of this folder defines one command's options and the work that it runs.

To add a command, add one file with a `Command` in it. A command of another package is in a module that an entry point
of the group `ldm_ae.plugins` names. Modules whose names begin with `_` are not commands.
"""

from ldm_ae.commands.interface import Command
from ldm_ae.core.registry import Registry

__all__ = ["COMMANDS", "Command"]

COMMANDS: Registry[Command] = Registry(__name__, Command, "command", key="name", by_file=True)  # type: ignore[type-abstract]
"""Every command, by its name."""
