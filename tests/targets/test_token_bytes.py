"""Bytes of single tokens: end to end they are the text, whatever the kind of vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dspark.targets.token_bytes import TokenBytes
from fakes import STOP_ID, tiny_target_folder

TEXT = "Zwölf 🦀 and  数字\n\tend"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = Path(tmp_path_factory.mktemp("t"))
    return AutoTokenizer.from_pretrained(tiny_target_folder(folder, vocab_size=400, layers=2))


def sentencepiece() -> Any:
    """As Llama's: pieces with a mark for spaces, and a token for every byte."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"Zwlfand\u2581", "\u2581a"]
    vocabulary = {word: i for i, word in enumerate(words)}
    own = Tokenizer(
        models.BPE(vocabulary, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True)
    )
    own.normalizer = normalizers.Replace(" ", "\u2581")
    own.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=own)


def test_of_a_byte_level_vocabulary(byte_level: Any) -> None:
    octets, ids = TokenBytes(byte_level), byte_level(TEXT)["input_ids"]
    assert b"".join(map(octets.of, ids)).decode() == TEXT
    assert octets.of(STOP_ID) == b"<|im_end|>"
    assert octets.of(5000) == b""
    single = {octets.of(i) for i in range(len(byte_level)) if len(octets.of(i)) == 1}
    assert len(single) == 256


def test_of_pieces_and_bytes() -> None:
    tokenizer = sentencepiece()
    octets, ids = TokenBytes(tokenizer), tokenizer(TEXT)["input_ids"]
    assert b"".join(map(octets.of, ids)).decode() == TEXT
    assert octets.of(tokenizer.convert_tokens_to_ids("\u2581a")) == b" a"
    assert octets.of(tokenizer.convert_tokens_to_ids("<0xF0>")) == b"\xf0"
