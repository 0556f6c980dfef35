"""What a fresh machine's first answer costs: 256 tokens, with nothing measured before.

python examples/first_answer.py [DRAFTER FOLDER ...] > first_answer.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import dspark
from dspark.artifacts import cache_dir, cpu_model
from dspark.drafters.shipped import shipped_drafter
from dspark.engine.engine import Engine
from dspark.fetching.known import DEFAULT_TARGET
from dspark.targets.target import Target

TOKENS, TURNS = 256, 5
PROMPT = "Explain how a refrigerator works, step by step."


def seconds(target: Target, folder: Path, policy: str) -> float:
    """Of engine and answer together; the empty cache folder holds the target alone."""
    drafter = dspark.load_drafter(folder, target)
    params = dspark.SamplingParams(max_new_tokens=TOKENS, ignore_stop=True)
    start = perf_counter()
    engine = Engine(target, drafter, policy, slots=1)
    engine.generate([target.encode(PROMPT)], params)
    return perf_counter() - start


def main(folders: list[Path]) -> None:
    """Print the speed of `auto` against plain decoding, by drafter."""
    shipped = [shipped_drafter(DEFAULT_TARGET, k) for k in ("dspark", "dflash", "eagle3", "mtp")]
    target = dspark.load_target(DEFAULT_TARGET)
    known, found = cache_dir() / "targets", {}
    for folder in [*filter(None, shipped), *folders]:
        ratios = []
        for _ in range(TURNS):
            with tempfile.TemporaryDirectory() as empty:
                os.environ["DSPARK_CACHE"] = empty
                (Path(empty) / "targets").symlink_to(known)
                ratios.append(seconds(target, folder, "off") / seconds(target, folder, "auto"))
        found[folder.name] = {"median": median(ratios), "turns": ratios}
    print(json.dumps({"machine": cpu_model(), "auto_over_off": found}, indent=2))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
