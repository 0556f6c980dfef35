"""Metrics, history, and the refit that drift calls for."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dspark.core import Request, RoundRecord, SamplingParams, StepOutput, StepStats, TokenKind
from dspark.engine.async_engine import AsyncEngine
from dspark.engine.engine import Engine
from dspark.engine.policies import PolicyTables
from dspark.errors import ConfigError
from dspark.server.history import History
from dspark.server.metrics import Gauges, Metrics
from dspark.server.monitor import Monitor
from dspark.server.settings import Settings
from dspark.tables.cost import CostKey, CostTable
from dspark.targets.target import Target
from scripted import random_drafter
from serving import CHAT, TEXT, chat, text

# A target forward costs nearly the same for one token and for many, so every slot is verified.
FLAT = CostTable(CostKey("", 1, "", "", ""), ((1, 0.1), (64, 0.101)), ((1, 0.001),), 8)


def scraped(client: TestClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Values of all samples by name and label values."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_metrics_count_what_answers_say(make: Any) -> None:
    with TestClient(make()) as client:
        usages = [
            client.post(CHAT, json=chat()).json()["usage"],
            client.post(TEXT, json=text(temperature=1, seed=1)).json()["usage"],
        ]
        found = scraped(client)
        points = client.get("/stats").json()["points"]
    for name, key in (("draft", "drafted"), ("verified", "verified"), ("accepted", "accepted")):
        total = found[f"dspark:spec_decode_num_{name}_tokens_total"][()]
        assert total == sum(usage["speculative"][key] for usage in usages)
    assert found["dspark:spec_decode_num_drafts_total"][()] > 0
    by_position = found["dspark:spec_decode_num_accepted_tokens_per_pos_total"]
    assert sum(by_position.values()) == found["dspark:spec_decode_num_accepted_tokens_total"][()]
    assert found["dspark:prompt_tokens_total"][()] == sum(u["prompt_tokens"] for u in usages)
    generated = sum(u["completion_tokens"] for u in usages)
    assert found["dspark:generation_tokens_total"][()] == generated
    assert sum(found["dspark:answers_total"].values()) == 2
    assert found["dspark:time_to_first_token_seconds_count"][()] == 2
    assert found["dspark:inter_token_latency_seconds_count"][()] == generated - 2
    assert found["dspark:e2e_request_latency_seconds_count"][()] == 2
    assert found["dspark:step_seconds_count"][()] > 2
    for name in ("waiting", "running"):
        assert found[f"dspark:num_requests_{name}"][()] == 0
    assert found["dspark:engine_healthy"][()] == 1
    assert found["dspark:kv_cache_usage_perc"][()] == 0
    assert found["dspark:calibration_predicted"].keys() <= {("0",), ("1",), ("2",), ("3",)}
    assert 0 <= found["dspark:calibration_ece"][("0",)] <= 1
    assert found["dspark:calibration_rounds"][("0",)] > 0
    assert isinstance(points, list)


def test_counters_begin_at_zero(make: Any) -> None:
    """Prometheus takes the first value it sees for the start, and counts growth from there."""
    with TestClient(make()) as client:
        found = scraped(client)
    by_position = found["dspark:spec_decode_num_accepted_tokens_per_pos_total"]
    assert by_position == {(str(position),): 0 for position in range(4)}
    reasons = {("stop",), ("length",), ("cancelled",), ("timeout",), ("error",)}
    assert found["dspark:answers_total"] == dict.fromkeys(reasons, 0)


def output(tokens: int, record: RoundRecord | None = None) -> StepOutput:
    kinds = [TokenKind.PLAIN] * tokens
    return StepOutput(Request(0, [1]), [5] * tokens, kinds, False, record)


def test_a_step_counts_acceptance_by_position() -> None:
    metrics = Metrics(lambda: Gauges(True, 0, 0, 0.0, 0, 0.0, 0.0, None), 4)
    records = [RoundRecord(4, 4, accepted, accepted + 1) for accepted in (0, 1, 3, 3)]
    records.append(RoundRecord(0, 0, 0, 1))  # without a draft
    metrics.step([output(3), *(output(r.committed, r) for r in records)], StepStats())
    metrics.step([output(3, RoundRecord(4, 2, 2, 3))], StepStats())
    read = metrics.registry.get_sample_value
    prefix = "dspark:spec_decode_num"
    by_position = [
        read(f"{prefix}_accepted_tokens_per_pos_total", {"position": str(n)}) for n in range(4)
    ]
    assert by_position == [4, 3, 2, 0]
    assert read(f"{prefix}_accepted_tokens_total") == 9
    assert read(f"{prefix}_draft_tokens_total") == 20
    assert read(f"{prefix}_verified_tokens_total") == 18
    assert read(f"{prefix}_drafts_total") == 5
    assert read("dspark:generation_tokens_total") == 3 + 1 + 2 + 4 + 4 + 1 + 3
    assert read("dspark:prompt_tokens_total") == 1


def test_a_step_takes_as_long_as_all_its_parts(target: Target) -> None:
    engine = Engine(target, random_drafter(target, 2), "fixed:2", slots=1, max_len=64)
    engine.stats = StepStats(steps=1, schedule_s=7.0)
    monitor = Monitor(engine, Settings(model="tiny"))
    monitor.watch(AsyncEngine(engine))
    engine.stats.draft_s, engine.stats.verify_s = 0.25, 0.5
    engine.stats.schedule_s, engine.stats.other_s = 7.125, 0.0625
    monitor.on_step([])
    registry = monitor.metrics.registry
    assert registry.get_sample_value("dspark:step_seconds_sum") == 0.25 + 0.5 + 0.125 + 0.0625


def test_history_has_a_point_a_second() -> None:
    now = [1000.5]
    history = History(lambda: now[0])
    stats = StepStats(steps=1, batch_tokens=6)
    history.step([output(2, RoundRecord(4, 3, 1, 2))], stats, running=1, waiting=2)
    history.step([output(4, RoundRecord(4, 3, 3, 4))], stats, running=1, waiting=0)
    assert history.points() == [], "the second is not over"
    now[0] = 1002.1
    history.step([output(1)], stats, running=3, waiting=0)
    now[0] = 1003.0
    first, idle, last = history.points()
    assert first == {
        "t": 1000,
        "tokens_per_s": 6,
        "running": 1,
        "waiting": 0,
        "mean_verify_len": 3.0,
        "batch_tokens": 6.0,
        "accept_by_position": [1.0, 0.5, 1.0],
        "drafted": 8,
        "verified": 6,
        "accepted": 4,
    }
    assert (idle["tokens_per_s"], idle["running"], idle["mean_verify_len"]) == (0, 0, None)
    assert idle["accept_by_position"] == [1.0, 0.5, 1.0]
    assert (last["t"], last["tokens_per_s"], last["mean_verify_len"]) == (1002, 1, None)
    assert history.recent() == (pytest.approx(0.7), 3.0)
    now[0] = 1062.5  # a minute later the first second's rounds are out of the picture
    assert history.points()[-3]["accept_by_position"] == [1.0, 0.5, 1.0]
    assert set(history.points()[-1]["accept_by_position"]) == {None}
    now[0] = 1400.0
    assert len(history.points()) == 300
    tokens_per_s, verify_len = history.recent()
    assert tokens_per_s == 0
    assert verify_len != verify_len


def test_drift_leads_to_a_refit_between_steps(
    make: Any, target: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The drafter claims far too much; texts stay what they are without a refit."""
    drafter = random_drafter(target, block_size=4)
    for name, weight in drafter.named_parameters():
        if "confidence" in name and "bias" in name:
            weight.data.fill_(2.0)
    requests = [text(f"rain {i}", max_tokens=20, temperature=1, seed=i) for i in range(4)]
    said, seen = [], []
    for recalibrate in (False, True):
        engine = Engine(target, drafter, "causal", slots=4, max_len=96, tables=PolicyTables(FLAT))
        app = make(engine, recalibrate=recalibrate, drift_window=24, drift_limit=0.05)
        with TestClient(app) as client, caplog.at_level(logging.INFO, "dspark.server"):
            said.append([client.post(TEXT, json=r).json()["choices"] for r in requests])
            greedy = client.post(TEXT, json=text()).json()["choices"][0]["text"]
            seen.append(scraped(client)["dspark:recalibrations_total"][()])
        ids = target.encode(text()["prompt"], raw=True)
        (plain,) = Engine(target, max_len=96).generate([ids], SamplingParams(max_new_tokens=8))
        assert greedy == target.decode(plain.output_ids)
    assert seen[0] == 0 < seen[1]
    assert said[0] == said[1], "texts with a seed of their own reproduce"
    policy: Any = engine.policy
    (entry,) = policy.tables.calibration.entries
    assert entry.key == (1.0, 1.0, 0)
    assert entry.temperatures[0] > 1
    (line, *_) = [r.getMessage() for r in caplog.records if "refitted" in r.getMessage()]
    assert "before" in line
    assert "after" in line


def test_a_refit_needs_a_policy_that_weighs_confidences(make: Any) -> None:
    with pytest.raises(ConfigError, match=r"found: fixed:4.*--policy auto"):
        make(recalibrate=True)


@pytest.mark.parametrize("wanted", [False, True])
def test_prompts_are_not_logged_unless_asked(
    make: Any, wanted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sesame"
    with (
        TestClient(make(log_prompts=wanted, api_keys=(key,))) as client,
        caplog.at_level(logging.DEBUG),
    ):
        headers = {"Authorization": f"Bearer {key}"}
        answer = client.post(CHAT, json=chat("zebras"), headers=headers).json()
    said = answer["choices"][0]["message"]["content"]
    lines = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("dspark"))
    assert "prompt tokens" in lines
    assert ("zebras" in lines) == wanted
    assert (repr(said) in lines) == wanted
    assert key not in "\n".join(r.getMessage() for r in caplog.records)
