"""A drafter that knows nothing: the shipped one's shape with random weights.

To see what a useless drafter costs:

    python examples/random_drafter.py /tmp/random
    dspark bench load --drafter /tmp/random --policies off,auto
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dspark import load_target
from dspark.drafters.checkpoint import read_checkpoint, save_drafter
from dspark.drafters.registry import make_drafter
from dspark.drafters.shipped import shipped_drafter
from dspark.fetching.known import DEFAULT_TARGET


def main(out: Path) -> None:
    """Write the drafter into a new folder."""
    shipped = shipped_drafter(DEFAULT_TARGET)
    assert shipped is not None, "run this in a checkout, or with the wheel installed"
    torch.manual_seed(0)
    drafter = make_drafter(read_checkpoint(shipped)[0]).bind(load_target(DEFAULT_TARGET, "float32"))
    save_drafter(drafter, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
