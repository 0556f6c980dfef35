"""vLLM, SGLang and llama.cpp: what each can read and how it is told.

Option names and what drafters must hold follow vLLM 0.33.0, SGLang 0.5.23 and the llama.cpp in
llama-cpp-python 0.3.36, read in their code. None of the engines was run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dspark.drafters.config import DrafterConfig
from dspark.engine.policies import Threshold
from dspark.engine.policy_names import ADAPTIVE, parse_policy
from dspark.errors import ConfigError, IncompatibleDrafterError
from dspark.export.plan import Drafting, Plan, Wish, check_nodes

RAY_PORT, SGLANG_PORT = 6379, 20000
GGUF_TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
SEVERAL_GPUS = frozenset({"tensor_parallel", "nodes", "node_rank", "head_address"})


def vllm(wish: Wish) -> Plan:
    """On one machine `vllm serve`; on several, Ray joins them first."""
    speculative = []
    if wish.drafting is not None:
        options = {
            "method": "dspark",
            "model": str(wish.drafting.folder),
            "num_speculative_tokens": wish.drafting.length,
            "draft_sample_method": "probabilistic",
        }
        if wish.drafting.adaptive:
            options["enable_adaptive_verification"] = True
        speculative = ["--speculative-config", json.dumps(options)]
    ray: list[tuple[str, ...]] = []
    several = []
    if wish.nodes > 1:
        host, port = wish.meeting_point(RAY_PORT)
        if wish.node_rank:
            join = ("ray", "start", f"--address={host}:{port}", "--block")
            return Plan(_files(wish), (), (join,))
        ray = [("ray", "start", "--head", f"--node-ip-address={host}", f"--port={port}")]
        several = ["--distributed-executor-backend", "ray"]
    serve = (
        *("vllm", "serve", wish.target, "--served-model-name", wish.name),
        *_where(wish),
        *("--dtype", wish.dtype, "--max-model-len", str(wish.max_len)),
        *("--max-num-seqs", str(wish.slots)),
        *("--tensor-parallel-size", str(wish.tensor_parallel)),
        *several,
        *speculative,
    )
    return Plan(_files(wish), (), (*ray, serve))


def sglang(wish: Wish) -> Plan:
    """The same command on every machine but for the rank."""
    several: list[str] = []
    if wish.nodes > 1:
        host, port = wish.meeting_point(SGLANG_PORT)
        several = ["--nnodes", str(wish.nodes), "--node-rank", str(wish.node_rank)]
        several += ["--dist-init-addr", f"{host}:{port}"]
    speculative: list[str] = []
    if wish.drafting is not None:
        speculative = ["--speculative-algorithm", "DSPARK"]
        speculative += ["--speculative-draft-model-path", str(wish.drafting.folder)]
        speculative += ["--speculative-dspark-block-size", str(wish.drafting.length)]
    serve = (
        *("sglang", "serve", "--model-path", wish.target, "--served-model-name", wish.name),
        *_where(wish),
        *("--dtype", wish.dtype, "--context-length", str(wish.max_len)),
        *("--max-running-requests", str(wish.slots)),
        *("--tp-size", str(wish.tensor_parallel)),
        *several,
        *speculative,
    )
    return Plan(_files(wish), (), (serve,))


def llama_cpp(wish: Wish) -> Plan:
    """`llama-server` on GGUF files, which its own script makes."""
    target, kind = wish.target, GGUF_TYPES[wish.dtype]
    by_hand: list[tuple[str, ...]] = []
    if not Path(target).is_dir():
        target = str(wish.made / "target")
        by_hand = [("hf", "download", wish.target, "--local-dir", target)]
    files = [wish.made / f"target-{kind}.gguf"]
    convert = ("python", "convert_hf_to_gguf.py")
    by_hand += [(*convert, target, "--outtype", kind, "--outfile", str(files[0]))]
    speculative: list[str] = []
    if (draft := wish.drafting) is not None:
        files += [wish.made / f"drafter-{kind}.gguf"]
        drafter = (str(draft.folder), "--target-model-dir", target)
        by_hand += [(*convert, *drafter, "--outtype", kind, "--outfile", str(files[1]))]
        speculative = ["--model-draft", str(files[1]), "--spec-type", "draft-dspark"]
        speculative += ["--spec-draft-n-max", str(draft.length)]
        if draft.threshold is not None:
            speculative += ["--spec-draft-p-min", f"{draft.threshold:g}"]
    serve = (
        *("llama-server", "--model", str(files[0]), "--alias", wish.name),
        *_where(wish),
        # It cuts the context into equal parts, one a slot.
        *("--ctx-size", str(wish.max_len * wish.slots), "--parallel", str(wish.slots)),
        "--no-kv-unified",
        *(("--threads", str(wish.threads)) if wish.threads else ()),
        *(("--api-key-file", str(wish.api_key_file)) if wish.api_key_file else ()),
        *speculative,
    )
    return Plan(tuple(files), tuple(by_hand), (serve,))


def _where(wish: Wish) -> tuple[str, ...]:
    return ("--host", wish.host, "--port", str(wish.port))


def _files(wish: Wish) -> tuple[Path, ...]:
    files = [Path(wish.target)] if Path(wish.target).is_dir() else []
    return (*files, *([wish.drafting.folder] if wish.drafting else []))


@dataclass(frozen=True, kw_only=True)
class OtherEngine:
    """What an engine takes.

    Attributes:
        plan: its commands.
        options: of ours, beyond those that all take, by parameter name.
        policies: beyond `off` and `fixed:K`.
        heads: sequential heads it reads; "none" is a block drafter without one, as DFlash is.
        reduced_vocabulary: of drafters.
        own_head: such a drafter must hold the rows of the target's head itself.
        plain_confidence: it reads a confidence head that does not see the previous token.
    """

    plan: Callable[[Wish], Plan]
    options: frozenset[str]
    policies: frozenset[str] = frozenset()
    heads: tuple[str, ...]
    reduced_vocabulary: bool = True
    plain_confidence: bool = True


ENGINES = {
    "vllm": OtherEngine(
        plan=vllm,
        options=SEVERAL_GPUS,
        policies=frozenset({"causal"}),
        heads=("vanilla", "none"),
    ),
    "sglang": OtherEngine(
        plan=sglang,
        options=SEVERAL_GPUS,
        heads=("vanilla", "gated", "rnn"),
        reduced_vocabulary=False,
    ),
    "llama.cpp": OtherEngine(
        plan=llama_cpp,
        options=frozenset({"threads", "api_key_file"}),
        policies=frozenset({"threshold"}),
        heads=("vanilla",),
        plain_confidence=False,
    ),
}


def find_engine(name: str) -> OtherEngine:
    """The engine of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENGINES:
        raise ConfigError("Unknown engine", found=name, fix=f"Use {', '.join(ENGINES)}")
    return ENGINES[name]


def plan(name: str, wish: Wish) -> Plan:
    """What one node does to serve `wish` on the engine of this name.

    Raises:
        ConfigError: the engine, a port, or the number of machines cannot be used.
    """
    engine = find_engine(name)
    check_nodes(wish)
    if wish.port == 0:
        raise ConfigError(f"{name} needs a port of its own", found="--port 0", fix="Choose one")
    if wish.dtype not in GGUF_TYPES:
        raise ConfigError("Unknown dtype", found=wish.dtype, fix=f"Use {', '.join(GGUF_TYPES)}")
    return engine.plan(wish)


def drafting(name: str, folder: Path, config: DrafterConfig, policy: str | None) -> Drafting:
    """How the engine of this name drafts under a policy of ours, `off` apart.

    Args:
        policy: None and `auto` take `causal` where engine and drafter can, else whole blocks.

    Raises:
        ConfigError: an unknown policy, or one without counterpart in the engine.
        IncompatibleDrafterError: the engine cannot read the drafter.
    """
    engine = find_engine(name)
    check_readable(name, config)
    sure = config.gives_confidence
    if policy == "auto":
        policy = None
    if policy is None:
        kind = "causal" if sure and "causal" in engine.policies else "fixed"
    else:
        kind = policy.partition(":")[0]
    length, limit = config.block_size, None
    if policy is not None and policy not in ADAPTIVE:
        ours = parse_policy(policy, length)  # refuses what nobody knows
        length, limit = ours.draft_len, ours.limit if isinstance(ours, Threshold) else None
    if kind != "fixed" and kind not in engine.policies:
        known = ", ".join(["off", "fixed:K", *sorted(engine.policies)])
        raise ConfigError(f"{name} has no policy like {kind}", fix=f"Of ours it has {known}")
    if kind != "fixed" and not sure:
        raise ConfigError(
            f"Policy {kind} needs a drafter with a confidence head", fix="Use fixed:K"
        )
    adaptive = kind == "causal"
    return Drafting(folder=folder, length=length, adaptive=adaptive, threshold=limit)


def check_readable(name: str, config: DrafterConfig) -> None:
    """Refuse a drafter that the engine of this name cannot read.

    Raises:
        IncompatibleDrafterError: naming what it cannot read.
    """
    engine = find_engine(name)
    head = config.sequential_head
    kind = "none" if head is None else head.kind
    found = None
    if not config.public_layout:
        found = f"kind {config.kind}, in a layout it does not know"
    elif kind not in engine.heads:
        found = f"sequential head {kind}, it reads {', '.join(engine.heads)}"
    elif head is not None and head.candidates:
        found = f"a head that scores {head.candidates} candidates alone, it scores all tokens"
    elif config.draft_vocab_size and not engine.reduced_vocabulary:
        found = f"a draft vocabulary of {config.draft_vocab_size}, it reads only whole ones"
    elif config.plain_confidence and not engine.plain_confidence:
        found = "a confidence head that does not see the previous token"
    if found:
        raise IncompatibleDrafterError(
            f"{name} cannot read this drafter",
            found=found,
            fix="Give another with --drafter, or none to serve the target alone",
        )
