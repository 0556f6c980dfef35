"""Conversations answered turn by turn: what each answer sees, what a killed run goes on with."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dspark.cli.main import main
from dspark.data.prompts import Prompt, load_prompts
from dspark.data.responses import load_responses
from dspark.errors import ConfigError, DataError, RequestError
from dspark.regeneration.mixture import MixturePart
from dspark.regeneration.regenerate import RegenerationProgress, run
from dspark.targets.target import Target, load_target
from fakes import tiny_target_folder, write_jsonl

OPTIONS: dict[str, Any] = {"max_new_tokens": 48, "slots": 4, "seed": 3, "max_len": 512}
HOT = [MixturePart(0.5, 1.0), MixturePart(0.5, 0.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target_folder(tmp_path_factory.mktemp("target"), max_position=512)


@pytest.fixture(scope="module")
def target(folder: Path) -> Target:
    """One of many stop tokens, since a random model rarely says one of few."""
    target = load_target(folder, "float32")
    target.stop_ids = target.stop_ids | set(range(20, 40))
    return target


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def talks(count: int, turns: int = 3) -> list[Prompt]:
    return [
        Prompt(
            f"t{i}",
            [user(f"count to {i}")],
            "chat",
            later=tuple(user(f"and then {k}") for k in range(1, turns)),
        )
        for i in range(count)
    ]


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by conversation, in the file's order."""
    rows = defaultdict(list)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows[row["id"]].append(row)
    return dict(rows)


def test_every_answer_is_the_target_s_own_and_sees_those_before(
    target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    done = run(target, talks(16), path, **OPTIONS, turns=3, mixture=HOT)
    rows = rows_of(path)
    assert len(rows) == 16
    assert done.rows == sum(map(len, rows.values())) > 24
    lengths = set()
    for prompt in talks(16):
        messages, own = list(prompt.messages), rows[prompt.id]
        lengths.add(len(own))
        for k, row in enumerate(own):
            assert row["turn"] == k
            assert row["prompt"] == messages[-1]["content"]
            assert row["prompt_ids"] == target.encode_messages(messages)
            assert row["response"] == target.decode(row["response_ids"])
            messages += [{"role": "assistant", "content": row["response"]}]
            if k < 2:
                messages += [prompt.later[k]]
        # It ends with the last turn, or with an answer that a limit cut.
        assert all(row["finished"] for row in own[:-1])
        assert len(own) == 3 or not own[-1]["finished"]
        assert len({row["temperature"] for row in own}) == 1
    assert 3 in lengths


def test_turns_limit_a_conversation(target: Target, tmp_path: Path) -> None:
    short, long, alone = (tmp_path / f"{name}.jsonl" for name in ("two", "three", "one"))
    run(target, talks(8), short, **OPTIONS, turns=2)
    assert max(map(len, rows_of(short).values())) == 2
    run(target, talks(8), long, **OPTIONS, turns=3)
    for name, rows in rows_of(short).items():
        assert rows == rows_of(long)[name][:2]
    run(target, talks(8), alone, **OPTIONS)  # no conversations: the same first answers
    for name, rows in rows_of(alone).items():
        assert rows == [{k: v for k, v in rows_of(long)[name][0].items() if k != "turn"}]
    # More turns go on from what is there, also from a file without conversations.
    for path in (short, alone):
        before = path.read_text()
        run(target, talks(8), path, **OPTIONS, turns=3)
        assert path.read_text().startswith(before)
        for name, rows in rows_of(path).items():
            texts = [row["response_ids"] for row in rows_of(long)[name]]
            assert [row["response_ids"] for row in rows] == texts
    # And fewer find everything done.
    before = long.read_text()
    assert run(target, talks(8), long, **OPTIONS, turns=1).new_tokens == 0
    assert long.read_text() == before


@pytest.mark.parametrize("at", [1, 5, 11])
def test_an_interrupted_run_repeats_no_answer(
    target: Target, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "a.jsonl", tmp_path / "whole.jsonl"

    def interrupt(progress: RegenerationProgress) -> None:
        if progress.rows >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(target, talks(8), path, **OPTIONS, turns=3, on_progress=interrupt)
    before = path.read_text()
    asked = []
    real = Target.encode_messages

    def encode(self: Target, messages: Any, *rest: Any) -> list[int]:
        asked.append(json.dumps(messages))
        return real(self, messages, *rest)

    monkeypatch.setattr(Target, "encode_messages", encode)
    run(target, talks(8), path, **OPTIONS, turns=3)
    monkeypatch.undo()
    run(target, talks(8), whole, **OPTIONS, turns=3)
    assert path.read_text().startswith(before)
    assert rows_of(path) == rows_of(whole)
    new = sum(map(len, rows_of(path).values())) - len(before.splitlines())
    assert len(asked) == len(set(asked)) == new


def test_answers_of_others_are_left_out(target: Target, tmp_path: Path) -> None:
    rows = [
        {"id": "m", "messages": [
            {"role": "system", "content": "be brief"}, user("one"),
            {"role": "assistant", "content": "not the target's"}, user("two"),
            {"role": "assistant", "content": "nor this"},
        ]},
        {"id": "t", "turns": ["one", "two"]},
    ]  # fmt: skip
    prompts = load_prompts(write_jsonl(tmp_path / "p.jsonl", rows))
    path = tmp_path / "a.jsonl"
    run(target, prompts, path, **OPTIONS, turns=5)
    found = rows_of(path)
    for name in ("m", "t"):
        assert [row["prompt"] for row in found[name]] == ["one", "two"][: len(found[name])]
    first = [{"role": "system", "content": "be brief"}, user("one")]
    assert found["m"][0]["prompt_ids"] == target.encode_messages(first)
    assert "not the target's" not in path.read_text()


def test_training_reads_conversations_as_sequences(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(target, talks(16), path, **OPTIONS, turns=3)
    rows, joined = rows_of(path), load_responses([path], join_turns=True)
    answered = sorted(i for own in rows.values() for row in own for i in row["response_ids"])
    assert sorted(i for r in joined for i in r.response_ids[r.completion_mask].tolist()) == answered
    for response in joined:
        ids = [*response.prompt_ids.tolist(), *response.response_ids.tolist()]
        last = next(r for r in rows[response.id] if r["prompt_ids"] + r["response_ids"] == ids)
        assert response.finished is last["finished"]


def test_a_template_that_keeps_answers_as_they_were_joins_them(
    folder: Path, tmp_path: Path
) -> None:
    """With the tokens that the text of an answer has anyway, as a trained model says them."""
    target = load_target(folder, "float32")
    (stop,) = target.stop_ids
    messages, rows = [user("count to 3")], []
    for k, text in enumerate(["one two three", "and four"]):
        answer = target.tokenizer.encode(text, add_special_tokens=False)
        fields = {"id": "a", "domain": "chat", "temperature": 0.0, "finished": True, "turn": k}
        prompt = {"prompt_ids": target.encode_messages(messages)}
        rows.append(fields | prompt | {"response_ids": [*answer, stop]})
        messages += [{"role": "assistant", "content": text}, user("go on")]
    (whole,) = load_responses([write_jsonl(tmp_path / "a.jsonl", rows)], join_turns=True)
    assert len(whole.context) == 1
    said = [*rows[0]["response_ids"], *rows[1]["response_ids"]]
    assert whole.response_ids[whole.completion_mask].tolist() == said
    assert "go on" in target.decode(whole.response_ids[~whole.completion_mask].tolist())


def test_an_answer_that_the_template_refuses_ends_its_conversation(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Target.encode_messages

    def picky(self: Target, messages: Any, *rest: Any) -> list[int]:
        if len(messages) > 3:
            raise RequestError("no place for this answer")
        return real(self, messages, *rest)

    monkeypatch.setattr(Target, "encode_messages", picky)
    path = tmp_path / "a.jsonl"
    done = run(target, talks(8), path, **OPTIONS, turns=3)
    assert (len(rows_of(path)), max(map(len, rows_of(path).values()))) == (8, 2)
    assert done.skipped == 0


def test_a_conversation_ends_where_there_is_no_room(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    options = OPTIONS | {"max_len": 100}
    done = run(target, talks(8, turns=9), path, **options, turns=9)
    assert done.skipped == 0
    assert all(len(r["prompt_ids"]) + 48 <= 100 for own in rows_of(path).values() for r in own)
    again = run(target, talks(8, turns=9), path, **options, turns=9)
    assert (again.new_tokens, again.rows) == (0, done.rows)


def test_files_that_cannot_be_gone_on_with(target: Target, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(target, talks(3), path, **OPTIONS, turns=2)
    other = [Prompt(p.id, [user("something else")], p.domain) for p in talks(3)]
    before = path.read_bytes()
    with pytest.raises(DataError, match="other completions than those of this conversation"):
        run(target, other, path, **OPTIONS, turns=2)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="no turn"):
        run(target, talks(1), tmp_path / "b.jsonl", **OPTIONS, turns=0)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"turns": [f"say {i}", "more", "and more"]} for i in range(4)]
    prompts, out = write_jsonl(tmp_path / "p.jsonl", rows), tmp_path / "answers.jsonl"
    command = ["regenerate", "--prompts", str(prompts), "--out", str(out), "--target", str(folder)]
    command += ["--dtype", "float32", "--max-new-tokens", "24", "--slots", "2", "--turns", "2"]
    assert main(command) == 0
    found = rows_of(out)
    assert len(found) == 4
    assert {row["turn"] for own in found.values() for row in own} <= {0, 1}
    assert f"{out}: {sum(map(len, found.values()))} answers, " in capsys.readouterr().out
