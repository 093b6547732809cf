"""The commands of `ldm-ae`, one file of this folder a command: its options and what it runs.

A new command is one new file with a `Command` in it; a command of another package lies in a module that an entry point
of the group `ldm_ae.plugins` names. Modules whose names begin with `_` are not commands.
"""

from ldm_ae.commands.interface import Command
from ldm_ae.core.registry import Registry

__all__ = ["COMMANDS", "Command"]

COMMANDS: Registry[Command] = Registry(__name__, Command, "command", key="name", by_file=True)  # type: ignore[type-abstract]
"""Every command by its name."""
