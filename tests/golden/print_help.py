"""`ldm-ae ARGUMENTS` in a process of its own: jsonargparse lists the subclasses that any module has imported."""

from ldm_ae.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
