"""The command line `ldm-ae`: find the command, run it, turn errors into exit statuses.

The commands are the files of `ldm_ae/commands/` and those of plugins.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ldm_ae.commands import COMMANDS
from ldm_ae.commands.interface import PROGRAM, Parser
from ldm_ae.core.errors import exit_status
from ldm_ae.version import __version__

_READERS = ("nibabel.global", "pydicom", "tifffile")
"""Readers of image files that log each oddity of a file, of which the reasons of bad images suffice."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 on success, 2 for a user's mistake, 1 where the machine failed, 128 + n after signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for reader in _READERS:
        logging.getLogger(reader).setLevel(logging.CRITICAL)
    return exit_status(lambda: _run(arguments))


def _run(arguments: list[str]) -> int | None:
    if not arguments:  # as pip, cargo, docker, kubectl and gh, whose status is 0 too
        _parser().print_help()
        return 0
    if arguments[0].startswith("-"):
        _parser().parse_args(arguments)  # ends the process: it prints help or the version, or refuses
    return COMMANDS[arguments[0]]().execute(arguments[1:])


def _parser() -> Parser:
    """Return the parser of `--help` and `--version`, which lists the commands."""
    parser = Parser(
        prog=PROGRAM,
        description="The first stage of latent diffusion: train, evaluate and use image autoencoders.",
        epilog=f"Run `{PROGRAM} COMMAND --help` for the options of a command. Start with: {PROGRAM} quickstart",
    )
    parser.add_argument("--version", action="version", version=f"ldm_ae {__version__}")
    listed = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in sorted(COMMANDS.items(), key=lambda item: (item[1].order, item[0])):
        listed.add_parser(name, help=command.summary[0].lower() + command.summary[1:].rstrip("."))
    return parser


if __name__ == "__main__":
    sys.exit(main())
