"""The monitoring examples against a real server, and a real Prometheus where there is one."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dspark.server.metrics import PREFIX
from serving import CHAT, Live, chat, get, post, soon

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples/monitoring/prometheus.yml"
DASHBOARD = json.loads((ROOT / "examples/monitoring/grafana-dashboard.json").read_text())
ADDRESS, INTERVAL = "127.0.0.1:8000", "scrape_interval: 5s"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}

Rows = list[tuple[dict[str, str], float]]


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def families(live: Live) -> dict[str, str]:
    """Types of the server's metrics by name, counters without their suffix."""
    text = get(live.url + "/metrics").text
    found = {family.name: family.type for family in text_string_to_metric_families(text)}
    return {name: kind for name, kind in found.items() if not name.endswith("_created")}


def scraped(live: Live, name: str) -> float:
    """What the server itself says of a counter."""
    text = get(live.url + "/metrics").text
    return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])  # type: ignore[index]


def ask(live: Live, count: int = 3) -> None:
    for seed in range(count):
        body = chat(seed=seed, temperature=1, max_tokens=24)
        assert post(live.url + CHAT, json=body).status_code == 200


def test_the_dashboard_asks_for_what_there_is(live: Live) -> None:
    ask(live, 1)
    exposed = {name + end for name, kind in families(live).items() for end in SUFFIXES[kind]}
    asked = {name for text in expressions() for name in re.findall(rf"{PREFIX}\w+", text)}
    assert asked
    assert asked <= exposed


def test_the_page_lists_every_metric(live: Live) -> None:
    ask(live, 1)
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    table = page.split("\n## Metrics\n")[1].split("\n## ")[0].split("\n### ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    listed = {PREFIX + name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    soon(lambda: listed == set(families(live)))  # means come once a second
    assert listed == set(families(live))


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert [v["name"] for v in DASHBOARD["templating"]["list"]] == ["datasource"]
    for panel in panels:
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["title"]
        assert panel["description"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.fixture
def prometheus(live: Live, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of a Prometheus that scrapes the server with the example's configuration."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("the program prometheus is not installed")
    text = CONFIG.read_text(encoding="utf-8")
    assert ADDRESS in text
    assert INTERVAL in text
    text = text.replace(ADDRESS, live.url.removeprefix("http://"))
    (tmp_path / "prometheus.yml").write_text(text.replace(INTERVAL, "scrape_interval: 300ms"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, f"--config.file={tmp_path / 'prometheus.yml'}", "--log.level=warn"]
    command += [
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1") as client:
                assert soon(lambda: ready(client)), (tmp_path / "log").read_text()
                yield client
        finally:
            process.terminate()


def ready(client: httpx.Client) -> bool:
    try:
        return client.get("/status/buildinfo").status_code == 200
    except httpx.TransportError:
        return False


def query(client: httpx.Client, text: str) -> Rows:
    """Labels and value of each series that an expression gives now."""
    answer: dict[str, Any] = client.get("/query", params={"query": text}).json()
    assert answer["status"] == "success", (text, answer)
    return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]


def value(client: httpx.Client, text: str) -> float:
    rows = query(client, text)
    return rows[0][1] if len(rows) == 1 else math.nan


def test_a_real_prometheus_scrapes_the_server(live: Live, prometheus: httpx.Client) -> None:
    names = [f"{PREFIX}spec_decode_num_{what}_total" for what in ("drafts", "accepted_tokens")]
    drafts = names[0]
    assert soon(lambda: value(prometheus, 'up{job="dspark"}') == 1)
    for _ in range(2):  # a series that is new in a scrape has no rate yet
        ask(live)
        told = scraped(live, drafts)
        assert soon(lambda told=told: value(prometheus, drafts) == told)

    def ask_panel(title: str, function: str = "rate(") -> list[Rows]:
        [panel] = [panel for panel in DASHBOARD["panels"] if panel["title"] == title]
        texts = [target["expr"].replace("$__rate_interval", "1m") for target in panel["targets"]]
        return [query(prometheus, text.replace("rate(", function)) for text in texts]

    silent = [p["title"] for p in DASHBOARD["panels"] if not all(ask_panel(p["title"]))]
    assert not silent
    # A rate guesses beyond its samples, near zero differently for each counter; delta does not.
    grown = [value(prometheus, f"max_over_time({n}[1m]) - min_over_time({n}[1m])") for n in names]
    [[(_, length)]] = ask_panel("Accepted length", "delta(")
    assert length == pytest.approx(1 + grown[1] / grown[0])
    [by_position] = ask_panel("Acceptance by position")
    shares = [share for _, share in sorted(by_position, key=lambda row: row[0]["position"])]
    assert 0 < shares[0] < 1
    assert shares == sorted(shares, reverse=True)


def test_promtool_accepts_the_configuration() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("the program promtool is not installed")
    done = subprocess.run([program, "check", "config", CONFIG], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
