"""Every endpoint, fuzzed from its own description: no mistake of the server, no hang."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from serving import MODEL, Live


def fuzz(live: Live, examples: int) -> set[str]:
    """Send that many requests of each kind to every endpoint; returns the endpoints."""
    schema = schemathesis.openapi.from_url(live.url + "/openapi.json")
    seen = set()
    for operation in (result.ok() for result in schema.get_all_operations()):
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                # Most are for the model there is, so that the other fields matter.
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body["model"] = MODEL
                case.call_and_validate(checks=[not_a_server_error], timeout=60)

            with suppress(Unsatisfiable):  # nothing can be wrong where nothing is sent
                ask()
        seen.add(operation.label)
    return seen


def test_no_mistake_of_the_server(live: Live) -> None:
    assert fuzz(live, 4) >= {"POST /v1/chat/completions", "POST /v1/completions", "GET /ready"}
    assert live.service.engine.healthy


@pytest.mark.soak
def test_no_mistake_of_the_server_at_length(live: Live) -> None:
    fuzz(live, 500)
    assert live.service.engine.healthy
