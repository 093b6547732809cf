"""Train from a configuration: `accelerate launch scripts/train.py --config configs/kl_f8.yaml --data.train IMAGES`.

It does the same as `ldm-ae train`; it is a file, because `accelerate launch` takes one.
"""

import sys

from ldm_ae.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
