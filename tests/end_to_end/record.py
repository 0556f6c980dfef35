"""Records what tiny models answer and learn, for `test_recorded.py` to hold every later state to.

    python tests/end_to_end/record.py            rewrites recorded.json beside this file
    python tests/end_to_end/record.py FILE       writes the recording there
    python tests/end_to_end/record.py --exact FILE   adds every number to the last bit, which is
                                                 good for one processor and one PyTorch alone

Rewrite the file only where texts, losses or result files are meant to change, and say so.

No measured time enters: cost tables are given, and the policy `auto` is told what its steps took.
PyTorch's float32 operations compute on one thread; what is chosen by them does not hang on the
last bits, so that any processor gives the same tokens.
"""

from __future__ import annotations

import os

# Before torch loads. The kernels of a level round in a way of their own.
os.environ |= {
    "DSPARK_KERNELS": "torch",
    "DSPARK_KEPT_GIB": "0",
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

import contextlib
import hashlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests find these by themselves
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from dspark import SamplingParams, load_drafter, load_target
from dspark.artifacts import read_jsonl
from dspark.cli.main import main as command_line
from dspark.drafters.checkpoint import save_drafter
from dspark.drafters.registry import make_drafter
from dspark.engine.engine import Engine
from dspark.engine.policies import PolicyTables
from dspark.tables.cost import CostKey, CostTable
from dspark.training.trainer import run as train
from fakes import tiny_target_folder, write_jsonl
from scripted import drafter_config
from tiny import tiny_home, tiny_recipe

FILE = Path(__file__).with_name("recorded.json")
KINDS = ("dspark", "dflash", "eagle3", "mtp")
HEADS = ("vanilla", "gated", "rnn", "residual_rnn", "refined", "selector")
RULES = ("token", "block")
HIDDEN, BLOCK = 32, 5
TABLES = PolicyTables(
    CostTable(
        CostKey("a machine", 1, "a target", "float32", ""),
        verify=((1, 0.010), (8, 0.0106), (32, 0.016), (64, 0.030)),
        draft=((1, 0.0010), (4, 0.0016)),
        context=64,
        block=BLOCK,
        short=((1, ((1, 0.0004), (4, 0.0008))), (3, ((1, 0.0007), (4, 0.0012)))),
        of_requests=((1, ((1, 0.010), (8, 0.0105))), (2, ((2, 0.0102), (32, 0.0170)))),
    )
)

# ---- answers --------------------------------------------------------------------------------


@dataclass
class Some:
    """A grammar: of any two neighbouring tokens one decides whether the other may follow."""

    size: int
    last: int = 0

    def start(self) -> Some:
        return Some(self.size)

    def advance(self, ids: Sequence[int]) -> None:
        self.last = ids[-1]

    def allowed(self, ids: Sequence[int]) -> NDArray[np.bool_] | None:
        before = [self.last, *ids]
        if not all(self._after(a)[b] for a, b in zip(before, ids, strict=False)):
            return None
        return self._after(before[-1])

    def _after(self, token: int) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = (np.arange(self.size) * 3 + token * 7) % 4 != 0
        return allowed


def make_models(folder: Path, family: str = "llama") -> Path:
    """Save a target; its drafters are made beside it."""
    return tiny_target_folder(
        folder / family, family, layers=4, hidden=HIDDEN, temper=2.0, sliding_window=8
    )


def save_random_drafter(folder: Path, target: Any, place: Path, **more: Any) -> Path:
    """Save a drafter of random weights that says, of the next token, what the last one tells.

    Args:
        place: folder of the target.
        more: fields of the configuration.
    """
    saved = load_file(place / "model.safetensors")
    final = saved["model.norm.weight"] + float("gemma" in place.name)
    told = saved["model.embed_tokens.weight"]
    told = told / told.pow(2).mean(-1, keepdim=True).sqrt() * final
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drafter = make_drafter(drafter_config(target, BLOCK, **{"markov_rank": HIDDEN} | more))
    noise, said = torch.Generator().manual_seed(4), torch.arange(len(told))
    if drafter.d2t is not None:
        said = drafter.d2t = torch.arange(8, len(told), 2)
    weights = drafter.state_dict()
    for name, weight in weights.items():
        if name.removeprefix("backbone.") == "norm.weight":
            weight.copy_(final)
        elif name == "eh_proj.weight":
            weight[:, :HIDDEN] = torch.eye(HIDDEN)
        elif name == "markov_head.markov_w1.weight":
            weight.copy_(told)
        elif name == "markov_head.markov_w2.weight":
            weight.copy_(saved["model.embed_tokens.weight"][said])
        elif weight.dim() == 2 and not weight.any():  # parts of heads that begin with nothing
            # Confidences near 0 and 1 would look alike, or not, by their last bits.
            weight.normal_(std=0.06 if "confidence" in name else 0.5, generator=noise)
        elif weight.dim() == 2 and ("layers." in name or name.endswith("fc.weight")):
            weight.mul_(3)
    return save_drafter(drafter.bind(target), folder, dtype=torch.float32)


PROMPTS = [
    [7, 31, 90],
    [120, 44, 13, 13, 80, 151, 9, 62, 28],
    [50 + 5 * n for n in range(17)],
    [99, 12, 37, 70, 141],
    [6 + (11 * n) % 150 for n in range(26)],
]
GREEDY = [SamplingParams(max_new_tokens=8 + n, ignore_stop=n == 3) for n in range(5)]
# Some keep their verify length, having a seed of their own; the others do not.
DRAWN = [
    SamplingParams(temperature=1.0, seed=11, max_new_tokens=13),
    SamplingParams(temperature=1.0, max_new_tokens=12),
    SamplingParams(temperature=0.7, top_p=0.9, seed=12, max_new_tokens=11),
    SamplingParams(temperature=1.0, top_k=20, max_new_tokens=14, ignore_stop=True),
    SamplingParams(temperature=1.0, max_new_tokens=10),
]


def answers(engine: Engine, params: Sequence[SamplingParams], exact: bool) -> dict[str, Any]:
    """What an engine says to the prompts, and how its rounds went.

    `texts` are token ids; `rounds` are verified:accepted tokens, round by round.
    """
    observe = engine.policy.observe

    def told(step: Any) -> None:
        seconds = 0.009 + 0.0003 * step.rows + 0.002 * bool(step.drafted)
        observe(replace(step, seconds=seconds))

    engine.policy.observe = told  # type: ignore[method-assign]
    asked = [engine.submit(*pair) for pair in zip(PROMPTS, params, strict=True)]
    logprobs: list[Any] = []
    while any(request.finish is None for request in asked):
        for output in engine.step():
            number = asked.index(output.request)
            for token in output.logprobs or ():
                logprobs.append([number, token.logprob, *(n for pair in token.top for n in pair)])
    found: dict[str, Any] = {
        "texts": [" ".join(map(str, request.output_ids)) for request in asked],
        "rounds": [" ".join(f"{r.verified}:{r.accepted}" for r in a.rounds) for a in asked],
    }
    if logprobs:
        found["logprobs"] = [[round(n, 4) for n in row] for row in logprobs]
    if exact:
        every = [[[c.hex() for c in r.confidence] for r in a.rounds] for a in asked]
        every.append([[float(n).hex() for n in row] for row in logprobs])
        found["bits"] = hashlib.sha256(json.dumps(every).encode()).hexdigest()
    return found


def all_answers(folder: Path, exact: bool) -> dict[str, Any]:
    """Answers by name of the case."""
    found: dict[str, Any] = {}
    place = make_models(folder)
    target = load_target(place, "float32")
    size = target.spec.vocab_size

    def record(
        name: str, model: Any, drafter: Any, policy: str, rules: Sequence[str], **more: Any
    ) -> None:
        grammar, logprobs = more.pop("grammar", None), more.pop("logprobs", None)
        sizes = {"slots": 5, "max_len": 48, "prefill_rows": 16, "seed": 5} | more
        for how, kind in (("0", GREEDY), *((f"1 {rule}", DRAWN) for rule in rules)):
            rule = how.partition(" ")[2] or "block"
            engine = Engine(model, drafter, policy, tables=TABLES, verification=rule, **sizes)
            params = [replace(one, grammar=grammar, logprobs=logprobs) for one in kind]
            found[f"{name} {policy} {how}"] = answers(engine, params, exact)

    record("none", target, None, "off", ["block"])
    for kind in KINDS:
        where = save_random_drafter(folder / kind, target, place, kind=kind)
        drafter = load_drafter(where, target)
        record(kind, target, drafter, "fixed:3", RULES)
        record(kind, target, drafter, "auto", RULES if kind in ("dspark", "mtp") else ["block"])
        if kind in ("dspark", "mtp"):
            more = {"grammar": Some(size), "logprobs": 2}
            record(f"{kind} in a grammar", target, drafter, "fixed:3", ["block"], **more)
        if kind == "dspark":
            record(kind, target, drafter, "causal", RULES)
            for policy in ("off", "threshold:0.5"):
                record(kind, target, drafter, policy, ["block"])
            # Above temperature 0 it chose other lengths with another rounding (AVX2 of PyTorch).
            record(kind, target, drafter, "pipelined", [])
            # 66 positions for all: requests wait, or give their place up and come back.
            room = {"cache_gib": 66 * (target.position_bytes + drafter.position_bytes) / 2**30}
            room["slots"] = 3
            record(f"{kind} little memory", target, drafter, "fixed:3", ["block"], **room)
    cases: list[tuple[str, dict[str, Any]]] = [(h, {"markov_head_type": h}) for h in HEADS[1:]]
    cases += [("candidates", {"candidates": 8}), ("no head", {"markov_rank": 0})]
    cases += [("few tokens", {"draft_vocab_size": (size - 8) // 2})]
    for name, more in cases:
        more = {"num_layers": 2} | more
        where = save_random_drafter(folder / name, target, place, **more)
        record(f"dspark {name}", target, load_drafter(where, target), "causal", ["block"])
    for family in ("qwen3", "gemma3"):
        place = make_models(folder, family)
        other = load_target(place, "float32")
        where = save_random_drafter(folder / f"{family}-drafter", other, place)
        record(f"{family} dspark", other, load_drafter(where, other), "fixed:3", ["block"])
    return found


# ---- training -------------------------------------------------------------------------------

OTHER_TERMS = {"ce": 0.0, "soft": 0.1, "kl": 0.1, "tv": 0.4, "log_overlap": 0.3, "greedy": 0.1}
OTHER_TERMS |= {"length": 0.1, "base": 0.2, "free": 0.2, "slots": "dpace"}  # type: ignore[dict-item]
RUNS: dict[str, dict[str, Any]] = {
    **{kind: {"drafter": {"kind": kind}} for kind in KINDS},
    **{f"dspark {head}": {"drafter": {"markov_head_type": head}} for head in HEADS[1:]},
    "dspark other terms": {"loss": OTHER_TERMS, "optim": {"name": "muon"}},
    "dspark candidates": {
        "drafter": {"candidates": 8, "num_layers": 2, "draft_vocab_size": 100},
        "loss": {"base": 0.2},
        "run": {"accumulate": 2},
    },
}
TERMS = ("loss", "ce", "tv", "bce")


@contextlib.contextmanager
def bits_of_losses() -> Iterator[list[str]]:
    """Every loss that is computed meanwhile, as hexadecimal numbers."""
    seen: list[str] = []

    def look(module: Any, given: Any, found: Any) -> None:
        if isinstance(getattr(found, "total", None), Tensor):
            seen.append(float(found.total.detach()).hex())

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def bits_of_weights(state: dict[str, Tensor]) -> str:
    """A digest of tensors and their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def all_losses(folder: Path, exact: bool) -> dict[str, Any]:
    """Losses of five steps and the held-out measure of every run; what a run writes."""
    home = tiny_home(folder / "home", count=16, layers=4, hidden=HIDDEN)
    found: dict[str, Any] = {}
    steps = {"steps": 5, "log_every": 1, "sequences_per_step": 4}
    for name, sections in RUNS.items():
        own = dict(sections)
        own["run"] = steps | own.get("run", {})
        own["optim"] = {"lr": 1e-3} | own.get("optim", {})
        rows: list[dict[str, Any]] = []
        with bits_of_losses() as bits:
            out = home / f"run {name}"
            drafter, held_out = train(tiny_recipe(home, out, **own), rows.append)
        further = sorted(key for key in held_out if key.startswith("loss_"))
        kept = [row for row in rows if row["kind"] in ("train", "held_out")]
        terms = [*TERMS, *further]
        found[name] = {"terms": " ".join(terms), "rows": [[row[t] for t in terms] for row in kept]}
        found[name]["accepted_length"] = held_out["accepted_length"]
        if exact:
            found[name] |= {"bits": bits, "weights": bits_of_weights(drafter.state_dict())}
    files = sorted(path for path in out.rglob("*") if path.suffix in (".json", ".jsonl"))
    found["files"] = {path.relative_to(out).as_posix(): form_of_file(path) for path in files}
    return found


# ---- result files ---------------------------------------------------------------------------


def form(value: Any) -> Any:
    """Keys and kinds of a JSON value: lists by the different forms of what is in them."""
    if isinstance(value, dict):
        return {key: form(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        forms = {json.dumps(form(part), sort_keys=True) for part in value}
        return [json.loads(text) for text in sorted(forms)]
    if isinstance(value, bool) or value is None:
        return "none" if value is None else "bool"
    return "number" if isinstance(value, int | float) else "text"


def form_of_file(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return form(list(read_jsonl(path)))
    return form(json.loads(path.read_text()))


def eval_files(folder: Path) -> dict[str, Any]:
    """What `dspark eval` writes: keys and kinds, and schemas as they are."""
    place = make_models(folder)
    target = load_target(place, "float32")
    save_random_drafter(folder / "a", target, place)
    save_random_drafter(folder / "b", target, place, kind="mtp")
    rows = [{"id": f"p{i}", "domain": "ab"[i % 2], "prompt": f"say {i}"} for i in range(6)]
    write_jsonl(folder / "prompts.jsonl", rows)
    result, trace = folder / "result.json", folder / "trace.jsonl"
    line = f"eval --target {place} --dtype float32 --data {folder}/prompts.jsonl --seed 3"
    line += f" --drafter a={folder}/a --drafter b={folder}/b --temperature 0 --temperature 1"
    line += f" --max-new-tokens 12 --slots 4 --threads 1 --json {result} --trace {trace}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = command_line(line.split())
    assert code == 0, f"dspark {line} ended with {code}"
    content = json.loads(result.read_text())
    record = sorted(content.pop("provenance"))  # what it names is this machine's
    return {
        "schema": content["schema"],
        "provenance": record,
        "result": form(content),
        "trace": form_of_file(trace),
        "accepted_length": [row["accepted_length"] for row in content["rows"]],
    }


def recording(exact: bool = False) -> dict[str, Any]:
    """Everything that is recorded."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("answers", "training", "eval"):
            (folder / part).mkdir()
        return {
            "about": "Made by `python tests/end_to_end/record.py`, which see; do not edit.",
            "answers": all_answers(folder / "answers", exact),
            "training": all_losses(folder / "training", exact),
            "eval": eval_files(folder / "eval"),
        }


def write(found: dict[str, Any], path: Path) -> None:
    """Write a recording, a line for each case."""
    parts = []
    for name, part in found.items():
        if isinstance(part, dict):
            lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items()]
            parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(part)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--exact"]
    write(recording("--exact" in sys.argv), Path(given[0]) if given else FILE)
