from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dspark.data.responses import load_responses
from fakes import FAMILIES, MASK_ID, STOP_ID, tiny_target_folder, write_responses


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def entropy(model: Any) -> float:
    """Mean entropy, nats, of next-token distributions after random tokens."""
    ids = torch.randint(6, 160, (8, 48), generator=torch.Generator().manual_seed(1))
    return float(torch.distributions.Categorical(logits=model(ids).logits).entropy().mean())


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_loads_and_generates(tmp_path: Path, family: str, tie: bool) -> None:
    folder = tiny_target_folder(tmp_path / "t", family, tie=tie)
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 160
    assert model.config.tie_word_embeddings is tie
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tie
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == STOP_ID
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert answer.shape[1] > ids["input_ids"].shape[1]
    assert 2.0 < entropy(model) < 3.2


@pytest.mark.parametrize("family", FAMILIES)
def test_context_and_last_token_both_matter(tmp_path: Path, family: str) -> None:
    model = load(tiny_target_folder(tmp_path / "t", family, tie=False))
    ids = torch.randint(6, 160, (16, 24), generator=torch.Generator().manual_seed(1))
    other = torch.cat([ids[:, :-1].roll(1, dims=0), ids[:, -1:]], dim=1)
    with torch.no_grad():
        p, q = (model(x).logits[:, -1].softmax(-1) for x in (ids, other))
    distance = 0.5 * float((p - q).abs().sum(-1).mean())
    assert 0.25 < distance < 0.8


def test_temper_sets_the_entropy(tmp_path: Path) -> None:
    flat = load(tiny_target_folder(tmp_path / "flat", temper=1.0))
    sharp = load(tiny_target_folder(tmp_path / "sharp", temper=5.0))
    assert entropy(flat) > 4
    assert 0.3 < entropy(sharp) < 1.6


def test_seed_decides_the_weights_and_nothing_else(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (
        (tiny_target_folder(tmp_path / name, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_gemma_has_windows_and_softcap(tmp_path: Path) -> None:
    folder = tiny_target_folder(tmp_path / "t", "gemma3", softcap=2.0)
    config = AutoConfig.from_pretrained(folder)
    assert (
        config.layer_types
        == ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"] * 2
    )
    assert config.sliding_window == 8
    with torch.no_grad():
        assert float(load(folder)(torch.arange(20)[None]).logits.abs().max()) <= 2.0


@pytest.mark.parametrize("vocab_size", [110, 160, 320, 512, 1200])
def test_tokenizer_has_the_size_asked_for_and_gives_text_back(
    tmp_path: Path, vocab_size: int
) -> None:
    folder = tiny_target_folder(tmp_path / "t", vocab_size=vocab_size, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == vocab_size
    text = "The rain, {x: 1}\n  in Spain"
    if vocab_size >= 320:
        text += " – größer 🙂"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert MASK_ID not in ids
    assert tokenizer("a<|im_end|>")["input_ids"][-1] == STOP_ID


def test_base_model_has_no_chat_template(tmp_path: Path) -> None:
    folder = tiny_target_folder(tmp_path / "t", layers=1, chat=False)
    assert AutoTokenizer.from_pretrained(folder).chat_template is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "mamba"}, "unknown family"),
        ({"hidden": 66}, "do not divide"),
        ({"softcap": 3.0}, "no logit softcapping"),
        ({"vocab_size": 50}, "too small"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_target_folder(tmp_path / "t", **options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_write_responses(tmp_path: Path, temperature: float) -> None:
    folder = tiny_target_folder(tmp_path / "t")
    how: dict[str, Any] = {"count": 6, "samples": 2, "temperature": temperature}
    file = write_responses(tmp_path / "r.jsonl.gz", folder, **how)
    responses = load_responses([file])
    assert [r.key for r in responses[:3]] == ["fake-0#0", "fake-0#1", "fake-1#0"]
    assert len(responses) == 12
    assert {r.domain for r in responses} == {"math", "code", "chat"}
    for response in responses:
        assert 1 <= len(response.response_ids) <= 32
        assert response.finished == (response.response_ids[-1] == STOP_ID)
    greedy = responses[0].response_ids.tolist() == responses[1].response_ids.tolist()
    assert greedy == (temperature == 0)
    again = write_responses(tmp_path / "again.jsonl.gz", folder, **how)
    assert again.read_bytes()[10:] == file.read_bytes()[10:]  # the gzip header holds the time
