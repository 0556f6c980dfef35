"""Load and peer files: frontiers, never worse, and what the page says of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dspark.errors import DataError
from dspark.maths.never_worse import against_fixed
from dspark.reporting import report, serving
from dspark.reporting.load import load
from dspark.reporting.records import Load, Peers
from dspark.reporting.serving import frontier, matches
from dspark.reporting.tables import Cell, Table, never_worse_table, over_baseline, peers
from result_files import LOAD_POLICIES, PROVENANCE, load_row, write_load, write_peers

NAN = math.nan


def only(tables: Table | None) -> Table:
    assert tables is not None
    return tables


def texts(row: list[Cell]) -> list[str]:
    return [cell.text for cell in row]


# ---- frontiers ----------------------------------------------------------------------------------


def test_the_frontier_is_what_nobody_beats() -> None:
    points = [(10.0, 300.0), (40.0, 100.0), (20.0, 200.0), (15.0, 150.0), (5.0, 300.0), (9.0, NAN)]
    assert frontier(points) == [(40.0, 100.0), (20.0, 200.0), (10.0, 300.0)]
    assert frontier([]) == []


def test_matches_lie_between_points_and_nowhere_else() -> None:
    line = frontier([(80.0, 100.0), (40.0, 300.0)])
    low, inside, high = matches(line, [(90.0, 90.0), (50.0, 200.0), (20.0, 400.0)])
    assert (inside.speed, inside.throughput) == (50.0, 200.0)
    assert inside.speed_ratio == pytest.approx(60 / 50)  # half-way from 80 to 40
    assert inside.throughput_ratio == pytest.approx(250 / 200)
    for outside in (low, high):
        assert math.isnan(outside.speed_ratio)
        assert math.isnan(outside.throughput_ratio)
    assert matches([], [(1.0, 1.0)]) == []


def test_loads_of_two_machines_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_load(tmp_path / "r" / "cpu.json")
    monkeypatch.setitem(PROVENANCE, "device", "Example GPU")
    write_load(tmp_path / "r" / "gpu.json")
    found = serving.load_lines(load([tmp_path / "r"]))
    assert [setting.machine for setting in found] == ["Example CPU, 2 processors", "Example GPU"]
    assert [{line.file for line in some} for some in found.values()] == [
        {"r/cpu.json"},
        {"r/gpu.json"},
    ]


def test_only_the_baseline_gets_the_best_of_its_policies(tmp_path: Path) -> None:
    write_load(tmp_path / "r" / "dspark.json", policies=("off", "fixed:3", "causal"))
    mtp = [load_row("fixed:1", n) for n in (1, 4, 16)]
    mtp += [load_row("causal", n, gain=0.1) for n in (1, 4, 16)]  # beaten everywhere
    write_load(tmp_path / "r" / "mtp.json", "mtp", rows=mtp)
    ((setting, some),) = serving.load_lines(load([tmp_path / "r"])).items()
    assert str(setting) == "tiny-target, bfloat16, temperature 0, Example CPU, 2 processors"
    found = dict(serving.against_baseline(some))
    assert list(found) == ["dspark fixed:3", "dspark causal"]
    points = [(m.speed, m.throughput) for m in found["dspark causal"]]
    assert sorted(points, reverse=True) == points
    assert points == [(r["tokens_per_s_per_user_p50"], r["tokens_per_s"]) for r in mtp[:3]]
    table = over_baseline(list(found.items()), "t")
    assert len(table.rows) == 6
    middle = found["dspark causal"][1]
    assert texts(table.rows[4])[3:] == [
        f"{middle.speed_ratio:.2f}",
        f"{middle.throughput_ratio:.2f}",
    ]


def test_drafters_of_one_file_are_lines_of_their_own(tmp_path: Path) -> None:
    own = [load_row(policy, n) for n in (1, 4) for policy in ("off", "fixed:1", "causal")]
    mtp = [load_row("fixed:1", n, gain=9) | {"drafter": "mtp", "kind": "mtp"} for n in (1, 4)]
    write_load(tmp_path / "apart" / "dspark.json", rows=own)
    write_load(tmp_path / "r" / "both.json", rows=own + mtp)
    results = load([tmp_path / "r"])
    (some,) = serving.load_lines(results).values()
    assert serving.load_labels(some) == ["off", "dspark fixed:1", "dspark causal", "mtp fixed:1"]
    assert [line.kind for line in some] == ["dspark", "dspark", "dspark", "mtp"]
    assert list(dict(serving.against_baseline(some))) == ["dspark fixed:1", "dspark causal"]
    (both,), (alone,) = results.of(Load), load([tmp_path / "apart"]).of(Load)
    assert serving.never_worse(both[1]) == serving.never_worse(alone[1])


def test_without_the_baseline_nothing_is_compared(tmp_path: Path) -> None:
    write_load(tmp_path / "dspark.json")
    (some,) = serving.load_lines(load([tmp_path])).values()
    assert serving.against_baseline(some) == []


def test_lines_keep_settings_and_files_apart(tmp_path: Path) -> None:
    for name in "ab":
        write_load(tmp_path / "r" / f"{name}.json", policies=("off", "fixed:1"))
    (some,) = serving.load_lines(load([tmp_path])).values()
    names = [f"{tmp_path.name}/r/{file}.json" for file in "ab"]
    assert serving.load_labels(some) == [
        f"{policy}, {name}" for name in names for policy in ("off", "dspark fixed:1")
    ]
    rows = [load_row("off", 8), load_row("off", 1), load_row("off", 0, rate=2.0)]
    write_load(tmp_path / "r" / "a.json", rows=rows)
    (some,) = serving.load_lines(load([tmp_path / "r" / "a.json"])).values()
    assert [row.users for row in some[0].closed] == [1, 8]


# ---- never worse --------------------------------------------------------------------------------


def record(rows: list[dict[str, Any]]) -> Load:
    facts = {"target": "t", "drafter": "d", "dtype": "float32", "temperature": 0.0}
    return Load.model_validate({**facts, "rows": rows})


def test_never_worse_by_level() -> None:
    rows = [load_row(policy, n) for n in (1, 16) for policy in LOAD_POLICIES]
    rows[4]["slices"] = [{"tokens": 10, "seconds": 1.0}] * 12  # causal, one user: far too slow
    table = only(never_worse_table([("f.json", record(rows))]))
    assert [texts(row)[1:4] for row in table.rows] == [
        ["d", "1 users", "causal"],
        ["d", "1 users", "pipelined"],
        ["d", "16 users", "causal"],
        ["d", "16 users", "pipelined"],
    ]
    assert table.rows[0][-1].text.endswith(", below 0.95")
    assert table.rows[0][-1].strong
    lanes = {
        r["policy"]: [(float(s["tokens"]), s["seconds"]) for s in r["slices"]]
        for r in rows
        if r["users"] == 16
    }
    found = against_fixed(lanes)["pipelined"]
    assert table.rows[3][-1].note == f"{found.low:.3f} to {found.high:.3f}"
    assert table.rows[3][-1].text.startswith(f"{found.ratio:.3f}")
    assert table.rows[3][-1].strong == found.falls_short("pipelined")


def test_fixed_policies_alone_are_no_comparison() -> None:
    assert never_worse_table([("f", record([load_row(p, 1) for p in ("off", "fixed:1")]))]) is None
    assert never_worse_table([]) is None


# ---- the page -----------------------------------------------------------------------------------


def page_of(tmp_path: Path) -> str:
    page, _ = report.run([tmp_path / "results"], tmp_path / "out")
    return page.read_text()


def test_a_file_that_knows_little(tmp_path: Path) -> None:
    row = load_row("off", 0, rate=2.0)
    row |= {"tokens_per_s_ci": [], "tokens_per_s_per_user_p50": None, "accepted_length": None}
    write_load(tmp_path / "results" / "load.json", rows=[row])
    page = page_of(tmp_path)
    assert "2/s" in page
    assert "No load was measured." in page  # in a closed loop, which pictures show
    assert "MTP-1 was not measured under load." in page
    write_load(tmp_path / "results" / "load.json", policies=("off",))
    assert "nothing was drafted" in page_of(tmp_path)


def test_two_settings_are_two_pictures(tmp_path: Path) -> None:
    write_load(tmp_path / "results" / "a.json", policies=("off", "threshold:0.5", "fixed:x"))
    path = tmp_path / "results" / "b.json"
    write_load(path)
    path.write_text(path.read_text().replace("bfloat16", "float32"))
    page_of(tmp_path)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"frontier.png", "frontier_2.png", "load.png", "load_2.png"} <= names


def test_peers(tmp_path: Path) -> None:
    write_peers(tmp_path / "results" / "peers.json")
    ((file, found),) = load([tmp_path / "results"]).of(Peers)
    rows = {row[0].text: texts(row) for row in peers(file, found).rows}
    assert rows["dspark off"][2:4] == ["75.0", "1.00"]
    assert rows["dspark + dspark fixed:4"][4] == "1.95"
    assert rows["transformers"][5:7] == ["31%", "0.1250"]
    assert rows["llama-cpp-python"][1:4] == ["llama-cpp-python is not installed", "–", "–"]
    page = page_of(tmp_path)
    assert "Missing: llama-cpp-python: llama-cpp-python is not installed." in page
    assert "llama.cpp ran model.gguf, Q8_0." in page


def test_a_damaged_load_file_is_named(tmp_path: Path) -> None:
    rows = [load_row("off", 1) | {"slices": [{"tokens": "many", "seconds": 1}]}]
    write_load(tmp_path / "load.json", rows=rows)
    with pytest.raises(DataError, match=r"load\.json: rows\.0\.slices\.0\.tokens"):
        load([tmp_path])
