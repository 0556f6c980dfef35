"""The calibration table: what it computes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspark.errors import ConfigError, DataError, IncompatibleDrafterError
from dspark.maths.temperature_scaling import sigmoid
from dspark.tables.calibration import CalibrationEntry, CalibrationTable, confidence_logits

SHA = "ab" * 32
ENTRY = CalibrationEntry(
    1.0, 0.95, 40, (1.5, 0.5, 1.0), (0.9, 0.7, 0.5), 20, 3, 256, {"ece_after_mean": 0.01}
)
TABLE = CalibrationTable(SHA, "dspark", 3, "smollm2-135m", (ENTRY,))


def test_calibrated_confidence() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -4.0]])
    calibrated = ENTRY.calibrated(sigmoid(logits).tolist())
    assert calibrated == pytest.approx(sigmoid(logits / [1.5, 0.5, 1.0]))
    assert ENTRY.survival(sigmoid(logits)) == pytest.approx(np.cumprod(calibrated, axis=1))
    # Fewer slots than the block has, one request, no request.
    assert ENTRY.calibrated(sigmoid(logits[:, :2])) == pytest.approx(calibrated[:, :2])
    assert ENTRY.survival(sigmoid(logits[0])).shape == (3,)
    assert ENTRY.survival(np.zeros((0, 3))).shape == (0, 3)


def test_one_request_in_plain_numbers() -> None:
    entry = replace(ENTRY, temperatures=(1.5, 0.03, 1.0))
    sure_NK = np.random.default_rng(0).random((200, 3))
    sure_NK[:2] = [[0, 0, 1], [1, 1, 0]]
    for sure_K in sure_NK.tolist():
        for few in (1, 3):
            plain_K = entry.survival_of(sure_K[:few])
            assert plain_K == pytest.approx(entry.survival(sure_K[:few]).tolist(), rel=1e-12)
    cold = replace(ENTRY, temperatures=(1e-9, 1.0, 1.0))
    assert cold.survival_of([0.0, 1.0]) == pytest.approx([0.0, 0.0])
    assert cold.survival_of([1.0]) == [1.0]


def test_certainty_stays_finite() -> None:
    assert confidence_logits([0.0, 1.0]) == pytest.approx([-16.118, 16.118], abs=1e-3)
    calibrated = ENTRY.calibrated([0.0, 1.0, 1.0])
    assert calibrated == pytest.approx([0, 1, 1], abs=1e-4)
    assert (calibrated > 0).all()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TABLE.save(path, {"command": "test"})
    assert CalibrationTable.load(path, sha256=SHA) == TABLE
    assert json.loads(path.read_text())["schema"] == "dspark.calibration/1"


def test_lookup() -> None:
    assert TABLE.entry(1.0, 0.95, 40) is ENTRY
    with pytest.raises(ConfigError, match=r"temperature 0\.7, top_p 1, top_k 0, .*0\.95, top_k 40"):
        TABLE.entry(0.7)
    with pytest.raises(ConfigError, match="no entry"):
        replace(TABLE, entries=()).entry(1.0)
    greedy = TABLE.with_entry(replace(ENTRY, temperature=0.0, top_p=1.0, top_k=0))
    assert greedy.entry(0.0, 0.9, 5).temperature == 0  # filters do not matter to a greedy choice


def test_an_entry_is_added_or_replaced() -> None:
    other = replace(ENTRY, temperature=0.5)
    two = TABLE.with_entry(other)
    assert two.entries == (other, ENTRY)
    newer = replace(ENTRY, temperatures=(1.0, 1.0, 1.0))
    assert two.with_entry(newer).entries == (other, newer)


def test_a_table_of_another_drafter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TABLE.save(path)
    with pytest.raises(
        IncompatibleDrafterError, match=r"another drafter \(found: table abab.*, drafter cdcd"
    ):
        CalibrationTable.load(path, sha256="cd" * 32)


def test_entries_of_both_rules_lie_side_by_side(tmp_path: Path) -> None:
    token = replace(ENTRY, verification="token", mean_survival=(0.8, 0.5, 0.3))
    greedy = replace(ENTRY, temperature=0.0, top_p=1.0, top_k=0)
    colder = replace(token, temperature=0.5)
    assert greedy.verification == ""  # all rules are one there
    table = TABLE.with_entry(token).with_entry(greedy).with_entry(colder)
    assert len(table.entries) == 4
    assert table.entry(1.0, 0.95, 40, "token") == token
    assert table.entry(1.0, 0.95, 40, "block") == ENTRY
    assert table.entry(0.0, verification="token") == table.entry(0.0) == greedy
    with pytest.raises(ConfigError, match=r"temperature 0\.5.*verification block"):
        table.entry(0.5, 0.95, 40, "block")
    path = tmp_path / "calibration.json"
    table.save(path)
    assert CalibrationTable.load(path, sha256=SHA) == table
    content = json.loads(path.read_text())
    content["entries"][-1]["verification"] = "by hand"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no verification 'by hand'"):
        CalibrationTable.load(path, sha256=SHA)


def test_under_a_rule_there_is_one_entry_for_each_way_of_sampling() -> None:
    token = replace(ENTRY, verification="token")
    colder = replace(token, temperature=0.5)
    greedy = replace(ENTRY, temperature=0.0, top_p=1.0, top_k=0)
    table = TABLE.with_entry(token).with_entry(colder).with_entry(greedy)
    served, others = table.under("block")
    assert served.entries == (greedy, colder, ENTRY)
    assert others == [colder]  # it stands in: nobody fitted one for block verification
    assert table.under("token") == (replace(table, entries=(greedy, colder, token)), [])


def test_older_files_speak_of_the_token_rule(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TABLE.with_entry(replace(ENTRY, temperature=0.0, top_p=1.0, top_k=0)).save(path)
    content = json.loads(path.read_text())
    for entry in content["entries"]:
        del entry["verification"]
    path.write_text(json.dumps(content))
    found = CalibrationTable.load(path, sha256=SHA)
    assert [entry.verification for entry in found.entries] == ["", "token"]


def test_an_entry_belongs_to_a_confidence_head(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    greedy = replace(ENTRY, temperature=0.0, top_p=1.0, top_k=0)  # the linear head speaks for it
    informed = TABLE.with_entry(greedy).with_entry(replace(ENTRY, confidence="ef" * 32))
    informed.save(path)
    assert CalibrationTable.load(path, sha256=SHA, confidence="ef" * 32) == informed
    for other in ("", "cd" * 32):
        with pytest.raises(IncompatibleDrafterError, match=r"head \(temperature 1.*table efef"):
            CalibrationTable.load(path, sha256=SHA, confidence=other)
    informed.greedy_only().save(path)
    assert CalibrationTable.load(path, sha256=SHA, confidence="cd" * 32).entries == (greedy,)
    TABLE.save(path)  # older files do not say: the linear head's
    content = json.loads(path.read_text())
    del content["entries"][0]["confidence"]
    path.write_text(json.dumps(content))
    assert CalibrationTable.load(path, sha256=SHA) == TABLE


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"temperatures": [1.0, 1.0]}, "2 temperatures, 3 survivals for a block of 3"),
        ({"mean_survival": [1.0] * 4}, "3 temperatures, 4 survivals"),
        ({"temperatures": [1.0, 0.0, 1.0]}, "temperature is 0.0, not a number above 0"),
        ({"temperatures": [1.0, float("nan"), 1.0]}, "temperature is nan"),
        ({"temperatures": [1.0, float("inf"), 1.0]}, "temperature is inf"),
        ({"temperatures": [1.0, True, 1.0]}, "temperature is True"),
        ({"temperatures": "111"}, "temperature is '1'"),
        ({"temperature": -1.0}, "temperature is -1.0, not a number from 0 on"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_p": 0}, "top_p is 0, not a number above 0 to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 1.5}, "top_k is 1.5, not a whole number from 0 on"),
        ({"top_k": -1}, "top_k is -1"),
        ({"rounds": True}, "rounds is True"),
        ({"max_new_tokens": "8"}, "max_new_tokens is '8'"),
        ({"mean_survival": [float("nan")] * 3}, "mean survival is nan"),
        ({"temperatures": [1.0, None, 1.0]}, "damaged"),
        ({"temperatures": 1.0}, "damaged"),
        ({"mean_survival": [1.2, 0.5, 0.5]}, "survival is 1.2, not a number from 0 to 1"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
    ],
)
def test_damaged_entries(tmp_path: Path, damage: dict[str, Any], words: str) -> None:
    path = tmp_path / "calibration.json"
    TABLE.save(path)
    content = json.loads(path.read_text())
    content["entries"][0] |= damage
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        CalibrationTable.load(path, sha256=SHA)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(DataError, match="cannot read"):
        CalibrationTable.load(path, sha256=SHA)
    TABLE.save(path)
    whole = json.loads(path.read_text())
    twice = {**whole, "entries": whole["entries"] * 2}
    no_drafter = {key: whole[key] for key in whole if key != "drafter"}
    for content, words in (
        ({**whole, "schema": "dspark.demo/1"}, "is not a dspark.calibration/1 file"),
        (no_drafter, "no 'drafter'"),
        ({**whole, "drafter": {**whole["drafter"], "block_size": 0}}, "block_size"),
        ({**whole, "drafter": {**whole["drafter"], "block_size": True}}, "block_size is True"),
        ({**whole, "drafter": {**whole["drafter"], "sha256": 5}}, "sha256 is 5"),
        (twice, "same way of sampling"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=words):
            CalibrationTable.load(path, sha256=SHA)
