"""From a recipe to data, mask and drafter."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from dspark.data.responses import Response
from dspark.data.vocabulary import token_frequencies
from dspark.errors import ConfigError, DataError, IncompatibleDrafterError
from dspark.targets.target import Target
from dspark.training.setup import build_drafter, load_data, pick_training_dtype, unused_token
from fakes import START_ID, STOP_ID, write_jsonl
from tiny import tiny_recipe


def text(*ids: int, prompt: tuple[int, ...] = (START_ID,), name: str = "x") -> Response:
    as_array = [np.array(x, dtype=np.int32) for x in (prompt, ids)]
    return Response(name, "math", *as_array, 1.0, True)


def fake_target(specials: list[int], stops: set[int], size: int = 12) -> Any:
    return SimpleNamespace(
        spec=SimpleNamespace(vocab_size=size),
        tokenizer=SimpleNamespace(all_special_ids=specials),
        stop_ids=frozenset(stops),
    )


def test_mask_is_a_special_token_that_no_text_holds() -> None:
    responses = [text(7, 8, 2)]
    assert unused_token(responses, fake_target([0, 1, 2, 5], {2}), None) == 5
    assert unused_token([text(5, 8, 2)], fake_target([0, 1, 2, 5], {2}), None) == 0
    assert unused_token([text(8, 2, prompt=(1, 5))], fake_target([0, 1, 2, 5], {2}), None) == 0


def test_without_a_free_special_token_any_unseen_id_serves() -> None:
    target = fake_target([1, 2], {2, 11})
    assert unused_token([text(10, 3, 2)], target, None) == 9  # 11 ends answers, 10 is seen
    with pytest.raises(ConfigError, match="Every token"):
        unused_token([text(*range(12))], target, None)


def test_a_configured_mask_must_not_occur() -> None:
    target = fake_target([0, 1, 2], {2})
    assert unused_token([text(7, 2)], target, 4) == 4
    with pytest.raises(ConfigError, match=r"mask_token_id occurs in the texts \(found: 7, 2 times"):
        unused_token([text(7, 7, 2)], target, 7)
    with pytest.raises(ConfigError, match="found: 9, 3 times"):
        unused_token([text(7, 2, prompt=(9, 9, 9))], target, 9)


def test_mask_of_the_tiny_target_is_special(home: Path, tmp_path: Path, target: Target) -> None:
    config = tiny_recipe(home, tmp_path)
    train, held_out = load_data(config, target)
    drafter, _ = build_drafter(config, target, train, held_out)
    mask = drafter.config.mask_token_id
    texts = [ids for r in [*train, *held_out] for ids in (r.prompt_ids, r.response_ids)]
    special = set(target.tokenizer.all_special_ids) - {STOP_ID}
    free = special - set(np.concatenate(texts).tolist())
    assert mask in free or not free
    assert mask != STOP_ID
    assert all(mask not in ids for ids in texts)


def test_mask_of_the_default_target(default_target: Path) -> None:
    """`<|endoftext|>`: special, no stop token of the chat model, in no chat text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_target)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=False
    )
    target: Any = SimpleNamespace(
        spec=SimpleNamespace(vocab_size=len(tokenizer)),
        tokenizer=tokenizer,
        stop_ids=frozenset([tokenizer.eos_token_id]),
    )
    mask = unused_token([text(28120, 2, prompt=tuple(prompt))], target, None)
    assert mask in tokenizer.all_special_ids
    assert mask not in prompt
    assert mask != tokenizer.eos_token_id


def test_a_mask_in_held_out_texts_counts_too(home: Path, tmp_path: Path, target: Target) -> None:
    train, held_out = load_data(tiny_recipe(home, tmp_path), target)
    free = unused_token([*train, *held_out], target, None)
    config = tiny_recipe(home, tmp_path, drafter={"mask_token_id": free})
    assert build_drafter(config, target, train, held_out)[0].config.mask_token_id == free
    with pytest.raises(ConfigError, match="occurs in the texts"):
        build_drafter(config, target, train, [*held_out, text(9, free, 2)])


@pytest.mark.parametrize("mask", [STOP_ID, 160, 4000])
def test_a_mask_that_the_target_cannot_have(
    home: Path, tmp_path: Path, target: Target, mask: int
) -> None:
    config = tiny_recipe(home, tmp_path, drafter={"mask_token_id": mask})
    with pytest.raises((IncompatibleDrafterError, ConfigError), match=str(mask)):
        build_drafter(config, target, *load_data(config, target))


def test_taps_that_the_target_does_not_offer(home: Path, tmp_path: Path, target: Target) -> None:
    config = tiny_recipe(home, tmp_path, drafter={"target_layer_ids": [1, 7]})
    with pytest.raises(IncompatibleDrafterError, match=r"\[1, 7\].*0 to 6"):
        build_drafter(config, target, *load_data(config, target))


def test_draft_vocabulary(home: Path, tmp_path: Path, target: Target) -> None:
    config = tiny_recipe(home, tmp_path, drafter={"draft_vocab_size": 40})
    train, held_out = load_data(config, target)
    drafter, coverage = build_drafter(config, target, train, held_out)
    ids = drafter.d2t.tolist()
    assert len(set(ids)) == 40
    assert STOP_ID in ids
    seen = token_frequencies(train, 160)
    assert coverage == pytest.approx(seen[ids].sum() / seen.sum())
    assert 0.3 < coverage < 1
    assert torch.equal(drafter.shared.head, target.head_weight[ids])
    whole, all_of_it = build_drafter(
        tiny_recipe(home, tmp_path, drafter={"draft_vocab_size": 8192}), target, train, held_out
    )
    assert (whole.d2t, all_of_it) == (None, 1.0)


def test_initial_weights_depend_on_the_seed(home: Path, tmp_path: Path, target: Target) -> None:
    config = tiny_recipe(home, tmp_path)
    data = load_data(config, target)
    first, again = (build_drafter(config, target, *data)[0] for _ in range(2))
    other = build_drafter(tiny_recipe(home, tmp_path, run={"seed": 1}), target, *data)[0]
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(first.backbone.fc.weight, other.backbone.fc.weight)


def row(name: str, prompt: list[int], answer: list[int]) -> dict[str, Any]:
    ids = {"prompt_ids": prompt, "response_ids": answer}
    return {"id": name, "domain": "math", "temperature": 0.0, "finished": True} | ids


def test_answers_of_another_target(tmp_path: Path, home: Path, target: Target) -> None:
    config = tiny_recipe(home, tmp_path, data={"held_out_share": 0.5})
    names = [f"p{n}" for n in range(20)]
    for bad in (row("bad", [1, 500], [7, 8]), row("bad", [1, 2], [7, 500, 8])):
        for name in ("bad", "bad2", "bad3", "bad4"):  # some land in training, some held out
            rows = [row(n, [1, 7], [8, 9, 2]) for n in names] + [bad | {"id": name}]
            write_jsonl(tmp_path / "answers.jsonl", rows)
            changed = tiny_recipe(tmp_path, tmp_path, data={"held_out_share": 0.5})
            with pytest.raises(DataError, match=r"token 500, vocabulary 160"):
                load_data(changed, target)
    assert load_data(config, target)[0]


def test_nothing_to_train_on(tmp_path: Path, target: Target) -> None:
    write_jsonl(tmp_path / "answers.jsonl", [row("a", [1, 7], [8])])
    with pytest.raises(DataError, match="No answer is left to train on"):
        load_data(tiny_recipe(tmp_path, tmp_path), target)


def test_dtype() -> None:
    assert pick_training_dtype("float32") is torch.float32
    assert pick_training_dtype("bfloat16") is torch.bfloat16
    assert pick_training_dtype("auto") in (torch.float32, torch.bfloat16)


def test_what_is_not_learned_from_is_counted_by_reason(tmp_path: Path, target: Target) -> None:
    rows = [row(f"p{n}", [1, 7], [8, 9, 2]) for n in range(3)]
    rows += [row("long", [1] * 20, [8, 9]), row("cut", [1] * 14, [8, 9, 2]), row("one", [1], [8])]
    write_jsonl(tmp_path / "answers.jsonl", [*rows, {"id": "bad"}])
    short = {"max_length": 16, "held_out_share": 0.0}
    dropped: Counter[str] = Counter()
    config = tiny_recipe(tmp_path, tmp_path, data={**short, "bad_rows": "skip"})
    train, _ = load_data(config, target, dropped)
    assert sorted(r.id for r in train) == ["cut", "p0", "p1", "p2"]
    assert dropped == {
        "the prompt alone fills the longest length": 1,
        "cut at the longest length, but kept": 1,
        "shorter than two tokens": 1,
        "has no field 'domain' (first: answers.jsonl:7)": 1,
    }
    with pytest.raises(DataError, match=r"answers.jsonl:7 has no field 'domain'"):
        load_data(tiny_recipe(tmp_path, tmp_path, data=short), target)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row("a", [1, 7], [8]), row("b", [1], [9])], "found: 2 x shorter than two tokens"),
        ([row("a", [1] * 20, [8, 9])], "every prompt fills max_length"),
        ([row("a", [1] * 20, [8, 9]), row("b", [1], [8])], "1 x the prompt alone.*1 x shorter"),
    ],
)
def test_the_true_reason_why_nothing_is_left(
    tmp_path: Path, target: Target, rows: list[dict[str, Any]], words: str
) -> None:
    write_jsonl(tmp_path / "answers.jsonl", rows)
    with pytest.raises(DataError, match=words) as caught:
        load_data(tiny_recipe(tmp_path, tmp_path, data={"max_length": 16}), target)
    assert "held_out_share" not in str(caught.value)


def test_all_held_out_is_told_as_such(tmp_path: Path, target: Target) -> None:
    write_jsonl(tmp_path / "answers.jsonl", [row("a", [1, 7], [8, 9, 2])])
    config = tiny_recipe(tmp_path, tmp_path, data={"held_out_share": 0.999999})
    with pytest.raises(DataError, match=r"1 answers, all of them held out.*held_out_share"):
        load_data(config, target)
