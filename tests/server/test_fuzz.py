"""Every endpoint, fuzzed from its own description: no mistake of the server, no hang."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from dspark.artifacts import provenance, write_artifact
from serving import MODEL, Live, soon

EXAMPLES = int(os.environ.get("DSPARK_SOAK_EXAMPLES", "1000"))
HANG_S = 60.0
RESULT = Path(__file__).parents[2] / "results" / "soak_fuzz.json"
COMPLETIONS = {"POST /v1/chat/completions", "POST /v1/completions"}


@dataclass
class Sent:
    """What was sent to one endpoint: answers by status, and the slowest."""

    statuses: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0


def fuzz(live: Live, examples: int) -> dict[str, Sent]:
    """Send that many requests of each kind to every endpoint; by endpoint, what came of it."""
    schema = schemathesis.openapi.from_url(live.url + "/openapi.json")
    sent: dict[str, Sent] = defaultdict(Sent)
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:
            fuzz_one(operation.as_strategy(generation_mode=mode), examples, sent[operation.label])
    return sent


def fuzz_one(strategy: Any, examples: int, sent: Sent) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def ask(case: Any) -> None:
        # Most are for the model there is, so that the other fields matter.
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        response = case.call(timeout=HANG_S)
        sent.statuses[str(response.status_code)] += 1
        sent.slowest_s = max(sent.slowest_s, response.elapsed)
        case.validate_response(response, checks=[not_a_server_error])

    with suppress(Unsatisfiable):  # nothing can be wrong where nothing is sent
        ask()


def endpoints(live: Live) -> set[str]:
    """What the server's own description lists, such as "GET /ready"."""
    paths = live.server.config.app.openapi()["paths"]  # type: ignore[union-attr]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_no_mistake_of_the_server(live: Live) -> None:
    assert fuzz(live, 4).keys() == endpoints(live) > COMPLETIONS
    assert live.service.engine.healthy


@pytest.mark.soak
def test_no_mistake_of_the_server_at_length(live: Live) -> None:
    sent = fuzz(live, EXAMPLES)
    engine = live.service.engine
    assert soon(lambda: engine.running == engine.waiting == 0, HANG_S)
    rows = [
        {
            "endpoint": label,
            "requests": mine.statuses.total(),
            "statuses": dict(sorted(mine.statuses.items())),
            "slowest_s": round(mine.slowest_s, 3),
        }
        for label, mine in sent.items()
    ]
    facts = {"examples": EXAMPLES, "rows": rows}
    write_artifact(RESULT, "dspark.soak_fuzz/1", facts, provenance("make soak", {}, []))
    assert sent.keys() == endpoints(live)
    for label in COMPLETIONS:
        mine = sent[label].statuses
        assert mine.total() >= EXAMPLES
        assert mine["200"] > 0, "some must get past the checks, to the engine"
        assert mine["400"] > 0
    assert engine.healthy
