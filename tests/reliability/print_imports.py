"""Run `ldm-ae` with the given arguments, then print the modules that it has imported."""

from __future__ import annotations

import json
import sys

from ldm_ae.cli import main

before = set(sys.modules)
status = main(sys.argv[1:])
print(json.dumps(sorted(set(sys.modules) - before)))
sys.exit(status)
