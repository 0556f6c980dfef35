"""Small stand-ins for real models and data, made in code, so that tests need no network.

The target is a real Hugging Face model with random weights, saved as a folder that the usual
`from_pretrained` calls open. Its weights are scaled so that its next-token distributions have a
clear favourite without being certain, and depend on the context as well as on the last token:
an acceptance test against it can come out either way. Norm weights are random too, so that code
which forgets one of them gives different numbers.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

FAMILIES = ("llama", "qwen3", "gemma3")

# Ids 0 to 5, in this order. The stop token is 2, as in the default target; the two reserved ones
# never occur in text and can serve as MASK.
SPECIAL_TOKENS = (
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<unk>",
    "<reserved_0>",
    "<reserved_1>",
)
PAD_ID, START_ID, STOP_ID, UNK_ID, MASK_ID = 0, 1, 2, 3, 4

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Written without a separator: th, he, in, …
_COMMON_PAIRS = (
    "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneearacelichllbe"
    "masiomurusss"
)


def tiny_target_folder(
    path: str | Path,
    family: str = "llama",
    *,
    seed: int = 0,
    vocab_size: int = 160,
    layers: int = 8,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    max_position: int = 256,
    tie: bool = True,
    temper: float = 2.5,
    softcap: float | None = None,
    sliding_window: int = 8,
    chat: bool = True,
) -> Path:
    """Save a tiny random target with its tokenizer and return its folder.

    Args:
        path: folder to make; its files are overwritten.
        family: "llama", "qwen3" or "gemma3" (text only; five sliding layers to one full).
        seed: decides the weights; the global random state is left alone.
        vocab_size: at least 110; from 320 on every byte has a token of its own, below that text
            outside printable ASCII becomes `<unk>`.
        layers, hidden, heads, kv_heads: shape; the head dimension is hidden / heads.
        max_position: longest sequence, tokens.
        tie: the head shares the embedding's weights.
        temper: standard deviation of the logits. At 160 tokens the mean entropy is about 4.5
            nats at 1, 2.7 at 2.5 and 1.1 at 5.
        softcap: Gemma's cap on the final logits; None for none.
        sliding_window: tokens that Gemma's sliding layers see.
        chat: give the tokenizer a chat template; False is a base model.

    Raises:
        ValueError: an unknown family, a shape that does not divide, or a softcap where the
            family has none.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    if hidden % heads or heads % kv_heads:
        raise ValueError(f"hidden {hidden}, heads {heads} and kv_heads {kv_heads} do not divide")
    if softcap is not None and family != "gemma3":
        raise ValueError(f"family {family} has no logit softcapping")
    tokenizer = _tokenizer(vocab_size, max_position, chat)
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": max_position,
        "tie_word_embeddings": tie,
        "pad_token_id": PAD_ID,
        "bos_token_id": START_ID,
        "eos_token_id": STOP_ID,
    }
    config = _config(family, shape, softcap, sliding_window)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, family, seed, temper)
    model.generation_config = GenerationConfig(
        pad_token_id=PAD_ID, bos_token_id=START_ID, eos_token_id=STOP_ID
    )
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def write_responses(
    path: str | Path,
    folder: str | Path,
    *,
    count: int = 12,
    samples: int = 1,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
    domains: Sequence[str] = ("math", "code", "chat"),
) -> Path:
    """Let a target folder (with a chat template) answer made-up prompts, and save the rows.

    Args:
        path: `.jsonl` or `.jsonl.gz` file to write.
        folder: what `tiny_target_folder` returned.
        count: prompts; domains take turns.
        samples: answers to each prompt, under the same id.
        max_new_tokens: longest answer, stop token included.
        temperature: 0 is greedy.
        seed: decides prompts and draws; the global random state is left alone.
        domains: labels.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    texts = [text for text in _made_up_prompts(count, seed) for _ in range(samples)]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in texts
    ]
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    # Plain sampling from the full distribution, whatever the generation config says.
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    if temperature == 0:
        how = {"do_sample": False}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        output = model.generate(**batch, **how, max_new_tokens=max_new_tokens)
    rows = []
    width = batch["input_ids"].shape[1]
    for index, answer in enumerate(output[:, width:].tolist()):
        finished = STOP_ID in answer
        ids = answer[: answer.index(STOP_ID) + 1] if finished else answer
        rows.append(
            {
                "id": f"fake-{index // samples}",
                "domain": domains[index // samples % len(domains)],
                "source": "fakes",
                "license": "none",
                "temperature": float(temperature),
                "top_p": 1.0,
                "prompt": texts[index],
                "response": tokenizer.decode(ids, skip_special_tokens=True),
                "prompt_ids": prompts[index],
                "response_ids": ids,
                "finished": finished,
            }
        )
    return write_jsonl(path, rows)


def write_jsonl(path: str | Path, rows: Sequence[object]) -> Path:
    """Write one JSON value a line, gzip-compressed when the name ends in `.gz`."""
    path = Path(path)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _config(family: str, shape: dict[str, Any], softcap: float | None, window: int) -> Any:
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen3Config

    if family == "llama":
        return LlamaConfig(**shape)
    if family == "qwen3":
        return Qwen3Config(**shape)
    if family == "gemma3":
        return Gemma3TextConfig(
            **shape,
            sliding_window=window,
            query_pre_attn_scalar=shape["head_dim"],
            final_logit_softcapping=softcap,
        )
    raise ValueError(f"unknown family {family!r}; use one of {', '.join(FAMILIES)}")


@torch.no_grad()
def _randomise(model: Any, family: str, seed: int, temper: float) -> None:
    """Give every weight a scale at which it matters, see the module's text."""
    random_numbers = torch.Generator().manual_seed(seed)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=random_numbers)

    hidden = model.config.hidden_size
    offset = 1.0 if family == "gemma3" else 0.0  # Gemma adds 1 to its norm weights
    for name, weight in model.named_parameters():
        if name == "model.norm.weight":
            continue
        if "norm" in name:
            # Gemma's post-norms decide how much a layer adds to the stream.
            size = 0.25 if family == "gemma3" and "post_" in name else 1.0
            weight.copy_(size - offset + 0.1 * normal(weight))
        elif "embed_tokens" in name or "lm_head" in name:
            weight.copy_(normal(weight) / hidden**0.5)
        else:
            # Small enough that the last token still weighs about as much as the context.
            gain = 0.08 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            weight.copy_(normal(weight) * gain / weight.shape[1] ** 0.5)
    # With rows of length 1 in the head, the size of the final norm is the logits' deviation.
    # Random signs keep a tied model from simply repeating its last token.
    final = model.model.norm.weight
    signs = torch.sign(normal(final))
    final.copy_(temper * signs * (1 + 0.1 * normal(final)) - offset)


def _tokenizer(vocab_size: int, max_position: int, chat: bool) -> Any:
    """A byte-level BPE tokenizer with exactly `vocab_size` tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    every_byte = vocab_size >= 320
    # Byte-level BPE spells a space as Ġ and a line break as Ċ.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if not every_byte:
        letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = [*SPECIAL_TOKENS, *letters]
    if vocab_size < len(tokens) + 8:
        raise ValueError(f"vocab_size {vocab_size} is too small; use {len(tokens) + 8} or more")
    merges: list[tuple[str, str]] = []
    lower = "etaoinsrhdlucmfywgpbvkxqjz"
    for left, right in [
        *zip(_COMMON_PAIRS[::2], _COMMON_PAIRS[1::2], strict=True),
        *product("Ġ" + lower, lower),
    ]:
        if len(tokens) < vocab_size and (left, right) not in merges:
            merges.append((left, right))
            tokens.append(left + right)
    tokens += [f"<filler_{n}>" for n in range(vocab_size - len(tokens))]

    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        model_max_length=max_position,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def _made_up_prompts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    verbs = ("add", "name", "sort", "explain", "count", "rewrite")
    things = ("the numbers", "a river", "this list", "the rain", "three birds", "one line")
    return [f"{draw.choice(verbs)} {draw.choice(things)} {n}" for n in range(count)]
