"""The commands for other engines, word for word, and what is refused before they are made."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dspark.drafters.dspark import DSparkConfig
from dspark.drafters.registry import DRAFTERS
from dspark.errors import ConfigError, DSparkError, IncompatibleDrafterError
from dspark.export.engines import ENGINES, drafting, plan
from dspark.export.plan import Drafting, Wish, script
from scripted import with_fields

FULL = DSparkConfig(
    hidden_size=64,
    vocab_size=160,
    num_target_layers=8,
    target_layer_ids=(1, 4),
    mask_token_id=4,
    block_size=7,
    markov_rank=8,
    confidence_head=True,
)
WORDS = {
    "method": "dspark",
    "model": "/d",
    "num_speculative_tokens": 7,
    "draft_sample_method": "probabilistic",
}


def wish(**more: Any) -> Wish:
    fields: dict[str, Any] = {
        "target": "some/model",
        "name": "model",
        "drafting": Drafting(folder=Path("/d"), length=7, adaptive=True),
        "host": "127.0.0.1",
        "port": 8000,
        "slots": 16,
        "max_len": 2048,
        "dtype": "bfloat16",
        "threads": None,
        "api_key_file": None,
        "tensor_parallel": 1,
        "nodes": 1,
        "node_rank": 0,
        "head_address": None,
        "made": Path("/made"),
    }
    return Wish(**fields | more)


def steps(engine: str, **more: Any) -> list[str]:
    return [shlex.join(step) for step in plan(engine, wish(**more)).steps]


def vllm_line(more: str = "--tensor-parallel-size 1", **words: Any) -> str:
    return (
        "vllm serve some/model --served-model-name model --host 127.0.0.1 --port 8000 "
        f"--dtype bfloat16 --max-model-len 2048 --max-num-seqs 16 {more} "
        f"--speculative-config '{json.dumps(WORDS | words)}'"
    )


def sglang_line(more: str = "--tp-size 1") -> str:
    return (
        "sglang serve --model-path some/model --served-model-name model --host 127.0.0.1 "
        f"--port 8000 --dtype bfloat16 --context-length 2048 --max-running-requests 16 {more} "
        "--speculative-algorithm DSPARK --speculative-draft-model-path /d "
        "--speculative-dspark-block-size 7"
    )


# ---- commands -------------------------------------------------------------------------------


def test_vllm_on_one_machine() -> None:
    adaptive = {"enable_adaptive_verification": True}
    assert steps("vllm") == [vllm_line(**adaptive)]
    assert steps("vllm", tensor_parallel=4) == [vllm_line("--tensor-parallel-size 4", **adaptive)]
    fixed = Drafting(folder=Path("/d"), length=3)
    assert steps("vllm", drafting=fixed) == [vllm_line(num_speculative_tokens=3)]
    [alone] = steps("vllm", drafting=None)
    assert "speculative" not in alone


def test_vllm_on_several_machines() -> None:
    many = {"tensor_parallel": 16, "nodes": 2, "head_address": "10.0.0.1"}
    ray = "--tensor-parallel-size 16 --distributed-executor-backend ray"
    assert steps("vllm", **many) == [
        "ray start --head --node-ip-address=10.0.0.1 --port=6379",
        vllm_line(ray, enable_adaptive_verification=True),
    ]
    assert steps("vllm", **many, node_rank=1) == ["ray start --address=10.0.0.1:6379 --block"]
    many["head_address"] = "[fd00::1]:7000"
    assert steps("vllm", **many, node_rank=1) == ["ray start '--address=[fd00::1]:7000' --block"]


def test_sglang() -> None:
    assert steps("sglang") == [sglang_line()]
    assert steps("sglang", tensor_parallel=2) == [sglang_line("--tp-size 2")]
    many = {"tensor_parallel": 4, "nodes": 2, "head_address": "head:5000"}
    for rank in (0, 1):
        more = f"--tp-size 4 --nnodes 2 --node-rank {rank} --dist-init-addr head:5000"
        assert steps("sglang", **many, node_rank=rank) == [sglang_line(more)]
    many["head_address"] = "head"
    assert "--dist-init-addr head:20000" in steps("sglang", **many)[0]


def test_llama_cpp() -> None:
    draft = Drafting(folder=Path("/d"), length=7, threshold=0.5)
    made = plan(
        "llama.cpp",
        wish(slots=4, max_len=100, threads=6, api_key_file=Path("k"), drafting=draft),
    )
    assert [shlex.join(line) for line in made.by_hand] == [
        "hf download some/model --local-dir /made/target",
        "python convert_hf_to_gguf.py /made/target --outtype bf16 --outfile /made/target-bf16.gguf",
        "python convert_hf_to_gguf.py /d --target-model-dir /made/target --outtype bf16 "
        "--outfile /made/drafter-bf16.gguf",
    ]
    assert [shlex.join(step) for step in made.steps] == [
        "llama-server --model /made/target-bf16.gguf --alias model --host 127.0.0.1 --port 8000 "
        "--ctx-size 400 --parallel 4 --no-kv-unified --threads 6 --api-key-file k "
        "--model-draft /made/drafter-bf16.gguf --spec-type draft-dspark --spec-draft-n-max 7 "
        "--spec-draft-p-min 0.5"
    ]
    assert made.files == (Path("/made/target-bf16.gguf"), Path("/made/drafter-bf16.gguf"))
    plain = plan("llama.cpp", wish(drafting=None, dtype="float16"))
    assert len(plain.files) == 1
    assert plain.steps[0][-1] == "--no-kv-unified"
    assert "f16" in plain.by_hand[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_script_is_read_back_by_a_shell(engine: str, tmp_path: Path) -> None:
    weird = tmp_path / "it's a $HOME; folder"
    weird.mkdir()
    plans = [
        plan(engine, wish(target=str(weird), drafting=Drafting(folder=weird, length=7), made=weird))
    ]
    lines = [line for line in script(plans).splitlines() if not line.startswith("#")]
    made = plans[0]
    assert [tuple(shlex.split(line)) for line in lines] == [*made.by_hand, *made.steps]
    assert any(str(weird) in "".join(step) for step in made.steps)


def test_a_script_for_all_nodes() -> None:
    many = {"tensor_parallel": 2, "nodes": 2, "head_address": "h"}
    plans = [plan("vllm", wish(**many, node_rank=rank)) for rank in (0, 1)]
    text = script(plans)
    first, second = text.split("# on node 1:\n")
    assert "# on node 0:\nray start --head" in first
    assert second == "ray start --address=h:6379 --block\n"


# ---- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"port": 0}, "needs a port of its own"),
        ({"dtype": "int8"}, "Unknown dtype"),
        ({"nodes": 2, "tensor_parallel": 2}, "where they meet"),
        ({"nodes": 2, "tensor_parallel": 2, "head_address": ":5000"}, "where they meet"),
        ({"nodes": 2, "tensor_parallel": 2, "head_address": "h:x"}, "no usable port"),
        ({"nodes": 2, "tensor_parallel": 2, "head_address": "h:70000"}, "no usable port"),
        ({"nodes": 2, "tensor_parallel": 3, "head_address": "h"}, "spread evenly"),
        ({"nodes": 2, "tensor_parallel": 2, "head_address": "h", "node_rank": 2}, "no node 2"),
        ({"node_rank": 1}, "no node 1"),
        ({"head_address": "h"}, "for several nodes"),
    ],
)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_cannot_be_run(engine: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(engine, wish(**more))


def test_an_unknown_engine() -> None:
    with pytest.raises(ConfigError, match=r"tgi\)\. Use vllm, sglang, llama\.cpp"):
        plan("tgi", wish())


@pytest.mark.parametrize(
    ("fields", "readers"),
    [
        ({}, {"vllm", "sglang", "llama.cpp"}),
        ({"draft_vocab_size": 40}, {"vllm", "llama.cpp"}),
        ({"markov_head_type": "gated"}, {"sglang"}),
        ({"markov_head_type": "rnn"}, {"sglang"}),
        ({"markov_head_type": "residual_rnn"}, set()),
        ({"markov_head_type": "refined"}, set()),
        ({"markov_head_type": "selector"}, set()),
        ({"candidates": 16}, set()),
        ({"confidence_with_markov": False}, {"vllm", "sglang"}),
        ({"kind": "dflash"}, {"vllm"}),
        ({"kind": "eagle3", "num_layers": 1}, set()),
        ({"kind": "mtp", "num_layers": 1}, set()),
    ],
)
def test_who_reads_which_drafter(fields: dict[str, Any], readers: set[str]) -> None:
    kind, own = fields.get("kind", "dspark"), asdict(FULL) | fields
    config = with_fields(DRAFTERS[kind].Config, own)
    for engine in ENGINES:
        if engine in readers:
            assert drafting(engine, Path("/d"), config, None).length == 7
        else:
            with pytest.raises(IncompatibleDrafterError, match="cannot read this drafter"):
                drafting(engine, Path("/d"), config, None)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_what_an_engine_cannot_read_is_named(engine: str) -> None:
    for fields, words in [
        ({"markov_head_type": "refined"}, "sequential head refined, it reads "),
        ({"candidates": 16}, "a head that scores 16 candidates alone"),
    ]:
        with pytest.raises(IncompatibleDrafterError, match=words):
            drafting(engine, Path("/d"), replace(FULL, **fields), None)


@pytest.mark.parametrize(
    ("engine", "policy", "length", "adaptive", "threshold"),
    [
        ("vllm", None, 7, True, None),
        ("vllm", "causal", 7, True, None),
        ("vllm", "fixed:3", 3, False, None),
        ("sglang", None, 7, False, None),
        ("sglang", "fixed:2", 2, False, None),
        ("llama.cpp", None, 7, False, None),
        ("llama.cpp", "threshold:0.4", 7, False, 0.4),
    ],
)
def test_policies_that_have_a_counterpart(
    engine: str, policy: str | None, length: int, adaptive: bool, threshold: float | None
) -> None:
    how = drafting(engine, Path("/d"), FULL, policy)
    assert (how.length, how.adaptive, how.threshold) == (length, adaptive, threshold)


@pytest.mark.parametrize(
    ("engine", "policy", "words"),
    [
        ("vllm", "pipelined", "no policy like pipelined"),
        ("vllm", "threshold:0.5", "no policy like threshold"),
        ("sglang", "causal", "no policy like causal.*off, fixed:K$"),
        ("llama.cpp", "causal", "no policy like causal.*threshold$"),
        ("vllm", "fixed:8", "does not fit the drafter"),
        ("vllm", "often", "Unknown policy"),
    ],
)
def test_policies_that_have_none(engine: str, policy: str, words: str) -> None:
    with pytest.raises(DSparkError, match=words):
        drafting(engine, Path("/d"), FULL, policy)


def test_a_policy_that_reads_confidences_needs_them() -> None:
    unsure = replace(FULL, confidence_head=False)
    assert not drafting("vllm", Path("/d"), unsure, None).adaptive
    for engine, policy in (("vllm", "causal"), ("llama.cpp", "threshold:0.5")):
        with pytest.raises(ConfigError, match="needs a drafter with a confidence head"):
            drafting(engine, Path("/d"), unsure, policy)
