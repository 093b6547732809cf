"""Run `ldm-ae` with the arguments after the first, a file that gets this process's largest resident size in bytes.

Without further arguments, nothing is run.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from ldm_ae.cli import main

file, *arguments = sys.argv[1:]
status = main(arguments) if arguments else 0
unit = 1 if sys.platform == "darwin" else 1024
Path(file).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))
sys.exit(status)
