"""Ten thousand requests through one engine: nobody is forgotten, and memory does not grow."""

from __future__ import annotations

import gc
import random
from collections import Counter
from pathlib import Path

import pytest

from dspark.artifacts import provenance, write_artifact
from dspark.core import FinishReason, Request, SamplingParams
from dspark.drafters.drafter import Drafter
from dspark.engine.engine import Engine
from dspark.errors import RequestError
from dspark.targets.target import Target
from scripted import whole_blocks

psutil = pytest.importorskip("psutil")
REQUESTS, WARM_UP, EVERY = 10_000, 2_000, 500
RESULT = Path(__file__).parents[2] / "results" / "soak_engine.json"


@pytest.mark.soak
def test_ten_thousand_requests(target: Target, drafter: Drafter) -> None:
    """All at once, of all kinds, some of them cancelled, in a cache that is too small for them."""
    draw = random.Random(0)
    position = Engine(target, drafter, whole_blocks(drafter)).runner.position_bytes
    engine = Engine(
        target, drafter, "fixed:3", slots=32, max_len=96, cache_gib=1000 * position / 2**30
    )
    open_ = {request.id: request for request in (_submit(engine, draw) for _ in range(REQUESTS))}
    with pytest.raises(RequestError):
        engine.submit([5] * 100)
    finished: Counter[str] = Counter()
    sizes = []
    while engine.queue:
        before = finished.total()
        ended = [output.request for output in engine.step() if output.finished]
        if draw.random() < 0.2:
            victim = open_[draw.choice(list(open_))]
            if victim.finish is None:
                ended.append(victim)
            engine.cancel(victim)
            engine.cancel(victim)
        for request in ended:
            assert request.finish is not None
            finished[request.finish.value] += 1
            del open_[request.id]
        if finished.total() // EVERY > before // EVERY:
            gc.collect()
            sizes.append((finished.total(), psutil.Process().memory_info().rss))
    assert not open_
    assert finished.total() == REQUESTS
    assert len(engine.queue.slots) == 32
    assert min(finished[reason.value] for reason in FinishReason) > 100
    assert engine.queue.preemptions > 100
    warm = max(size for at, size in sizes if at <= WARM_UP)
    growth = max(size for at, size in sizes if at > WARM_UP) - warm
    facts = {
        "requests": REQUESTS,
        "finished": dict(finished),
        "preemptions": engine.queue.preemptions,
        "steps": engine.stats.steps,
        "rss_mib": [[at, round(size / 2**20, 1)] for at, size in sizes],
        "growth_mib": round(growth / 2**20, 1),
    }
    write_artifact(RESULT, "dspark.soak_engine/1", facts, provenance("make soak", {"seed": 0}, []))
    assert growth < 20 * 2**20, f"memory grew by {growth / 2**20:.0f} MiB"


def _submit(engine: Engine, draw: random.Random) -> Request:
    prompt = [draw.randrange(5, 150) for _ in range(draw.randint(1, 60))]
    seed = draw.choice([None, draw.randrange(2**40)])
    params = SamplingParams(
        temperature=draw.choice([0.0, 1.0]),
        top_k=0,
        top_p=1.0,
        seed=seed,
        max_new_tokens=draw.randint(1, 60),
    )
    return engine.submit(prompt, params)
