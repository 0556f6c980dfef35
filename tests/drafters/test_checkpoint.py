"""Drafter checkpoints: what is written, what comes back, and what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspark.core import SamplingParams
from dspark.drafters.block.heads import MARKOV_HEADS
from dspark.drafters.checkpoint import (
    config_from_json,
    load_drafter,
    load_standalone,
    read_checkpoint,
    save_drafter,
)
from dspark.drafters.config import DrafterConfig, fit_to_target
from dspark.drafters.dflash import DFlashConfig, DFlashDrafter
from dspark.drafters.drafter import Drafter
from dspark.drafters.dspark import DSparkConfig
from dspark.drafters.registry import make_drafter
from dspark.errors import CheckpointError, IncompatibleDrafterError
from dspark.targets.target import Target, load_target
from fakes import MASK_ID, STOP_ID, tiny_target_folder
from scripted import with_fields

D, V, R, V_DRAFT = 64, 160, 6, 40
TAPS = (1, 3, 5)
BASE = DSparkConfig(
    hidden_size=D,
    vocab_size=V,
    num_target_layers=8,
    target_layer_ids=TAPS,
    mask_token_id=MASK_ID,
    block_size=5,
    intermediate_size=48,
    rope_theta=20_000.0,
    markov_rank=R,
    confidence_head=True,
    num_anchors=17,
    target_name="tiny",
)
KINDS: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "gated": {"markov_head_type": "gated"},
    "rnn": {"markov_head_type": "rnn"},
    "residual_rnn": {"markov_head_type": "residual_rnn"},
    "refined": {"markov_head_type": "refined"},
    "selector": {"markov_head_type": "selector"},
    "candidates": {"candidates": 4},
    "reduced": {"draft_vocab_size": V_DRAFT},
    "blind-confidence": {"confidence_with_markov": False},
    "dflash": {"shape": DFlashConfig},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tiny_target_folder(tmp_path_factory.mktemp("t") / "t", tie=False)
    return load_target(folder, "float32")


def config_of(shape: type[DrafterConfig] = DSparkConfig, **fields: Any) -> DrafterConfig:
    return with_fields(shape, asdict(BASE) | fields)


def fresh(target: Target, **fields: Any) -> Drafter:
    drafter = make_drafter(fit_to_target(config_of(**fields), target.spec))
    with torch.no_grad():
        for weight in drafter.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
        if drafter.d2t is not None:
            drafter.d2t.copy_(torch.arange(3, V, 3)[:V_DRAFT])
    return drafter.bind(target)


@pytest.fixture
def saved(target: Target, tmp_path: Path) -> Path:
    return save_drafter(fresh(target), tmp_path / "drafter", dtype=torch.float32)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    fields = json.loads((folder / "config.json").read_text())
    change(fields)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(call: Callable[[], object], *words: str, kind: type = CheckpointError) -> None:
    """One line that says all of `words`; an error about the files is not one about the target."""
    with pytest.raises(CheckpointError) as caught:
        call()
    assert type(caught.value) is kind
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in words), text


def block(drafter: Drafter, target: Target) -> Any:
    _, taps = target.states([list(range(10, 30))], TAPS)
    rows = torch.arange(20)
    cache = drafter.new_cache(1, 32)
    drafter.extend(cache, taps, torch.zeros_like(rows), rows, rows)
    draws = torch.full((1, 5), 0.3).numpy()
    return drafter.draft(cache, [9], [20], [0], [SamplingParams(temperature=1.0)], draws)


# ---- what is written ----------------------------------------------------------------------------


def expected_keys(kind: str) -> set[str]:
    keys = {"norm.weight", "fc.weight", "hidden_norm.weight"}
    for i in range(2):
        keys |= {f"layers.{i}.self_attn.{x}_proj.weight" for x in "qkvo"}
        keys |= {f"layers.{i}.self_attn.{x}_norm.weight" for x in "qk"}
        keys |= {f"layers.{i}.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
        keys |= {f"layers.{i}.{x}_layernorm.weight" for x in ("input", "post_attention")}
    if kind != "dflash":
        keys |= {"markov_head.markov_w1.weight", "markov_head.markov_w2.weight"}
        keys |= {"confidence_head.proj.weight", "confidence_head.proj.bias"}
    both = {"gated": "gate_proj", "rnn": "joint_proj", "residual_rnn": "joint_proj"}
    extra = (both | {"refined": "gate_up", "selector": "state_proj"}).get(kind)
    if extra:
        keys |= {f"markov_head.{extra}.weight", f"markov_head.{extra}.bias"}
    if kind == "refined":
        keys |= {"markov_head.update.weight", "markov_head.mix"}
    return keys | ({"d2t"} if kind == "reduced" else set())


@pytest.mark.parametrize("kind", list(KINDS))
def test_tensors_have_deepspecs_names_and_shapes(target: Target, tmp_path: Path, kind: str) -> None:
    folder = save_drafter(fresh(target, **KINDS[kind]), tmp_path / "d")
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == expected_keys(kind)
    shapes = {
        "fc.weight": (D, len(TAPS) * D),
        "layers.0.self_attn.k_proj.weight": (32, D),
        "layers.1.self_attn.o_proj.weight": (D, D),
        "layers.1.self_attn.q_norm.weight": (16,),
        "markov_head.markov_w1.weight": (V, R),
        "markov_head.markov_w2.weight": (V_DRAFT if kind == "reduced" else V, R),
        "markov_head.gate_proj.weight": (R, D + R),
        "markov_head.gate_proj.bias": (R,),
        "markov_head.joint_proj.weight": (3 * R, 2 * R + D),
        "markov_head.joint_proj.bias": (3 * R,),
        "markov_head.gate_up.weight": (2 * R, 2 * R + D),
        "markov_head.gate_up.bias": (2 * R,),
        "markov_head.update.weight": (R, R),
        "markov_head.mix": (5, 5, R),
        "markov_head.state_proj.weight": (R, D),
        "markov_head.state_proj.bias": (R,),
        "confidence_head.proj.weight": (1, D if kind == "blind-confidence" else D + R),
        "confidence_head.proj.bias": (1,),
        "d2t": (V_DRAFT,),
    }
    for key, shape in shapes.items():
        assert key not in tensors or tensors[key].shape == shape
    assert {t.dtype for k, t in tensors.items() if k != "d2t"} == {torch.bfloat16}


@pytest.mark.parametrize("kind", list(KINDS))
def test_config_fields(target: Target, tmp_path: Path, kind: str) -> None:
    folder = save_drafter(fresh(target, **KINDS[kind]), tmp_path / "d")
    fields = json.loads((folder / "config.json").read_text())
    fixed = {
        "architectures": ["Qwen3DSparkModel"],
        "model_type": "qwen3",
        "num_target_layers": 8,
        "num_hidden_layers": 2,
        "hidden_size": D,
        "vocab_size": V,
        "block_size": 5,
        "tie_word_embeddings": False,
        "layer_types": ["full_attention"] * 2,
        "mask_token_id": MASK_ID,
        "target_layer_ids": list(TAPS),
        "num_anchors": 17,
        "sample_from_anchor": True,
        "dtype": "bfloat16",
    }
    assert {key: fields[key] for key in fixed} == fixed
    assert fields["rope_parameters"]["rope_theta"] == 20_000.0
    on = kind != "dflash"
    assert fields["markov_rank"] == (R if on else 0)
    assert fields["enable_confidence_head"] is on
    head_type = kind if kind in MARKOV_HEADS else "vanilla"
    assert fields.get("markov_head_type") == (head_type if on else None)
    seen = {"dflash": None, "blind-confidence": False}.get(kind, True)
    assert fields.get("confidence_head_with_markov") is seen
    assert fields.get("draft_vocab_size") == (V_DRAFT if kind == "reduced" else None)
    assert fields.get("draft_candidates") == (4 if kind == "candidates" else None)


@pytest.mark.parametrize("kind", list(KINDS))
def test_config_round_trip(kind: str) -> None:
    config = config_of(**KINDS[kind])
    back = config_from_json(json.loads(json.dumps(config.to_json({}))))
    assert back == config


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", list(KINDS))
def test_round_trip(target: Target, tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    drafter = fresh(target, **KINDS[kind])
    folder = save_drafter(drafter, tmp_path / "d", dtype=dtype, extra_files={"note.txt": "hello"})
    assert (folder / "note.txt").read_text() == "hello"
    back = load_drafter(folder, target, pack=False)
    assert type(back) is type(drafter)
    assert back.config.target_name == "tiny"
    state = back.state_dict()
    for key, value in drafter.state_dict().items():
        stored = value if key == "d2t" else value.to(dtype).float()
        assert torch.equal(state[key], stored), key
    if dtype == torch.float32:
        mine, theirs = block(drafter, target), block(load_drafter(folder, target), target)
        assert torch.equal(mine.draft_ids_RK, theirs.draft_ids_RK)
        torch.testing.assert_close(
            mine.draft_probs_RKV, theirs.draft_probs_RKV, atol=1e-5, rtol=1e-4
        )


def test_d2t_is_an_offset_on_disk(target: Target, tmp_path: Path) -> None:
    folder = save_drafter(fresh(target, draft_vocab_size=V_DRAFT), tmp_path / "d")
    stored = load_file(folder / "model.safetensors")["d2t"]
    assert torch.equal(stored, torch.arange(3, V, 3)[:V_DRAFT] - torch.arange(V_DRAFT))
    loaded = load_drafter(folder, target)
    assert torch.equal(loaded.d2t, torch.arange(3, V, 3)[:V_DRAFT])
    assert torch.equal(loaded.shared.head, target.head_weight[loaded.d2t])


def test_loaded_for_inference_it_follows_the_target(target: Target, saved: Path) -> None:
    inference, training = load_drafter(saved, target), load_drafter(saved, target, pack=False)
    assert not any(p.requires_grad for p in inference.parameters())
    assert all(p.requires_grad for p in training.parameters())
    with pytest.raises(AssertionError, match="packed"):  # it would write half a checkpoint
        save_drafter(inference, saved)
    assert set(load_file(saved / "model.safetensors")) == expected_keys("vanilla")


def test_a_bfloat16_target_drafts_in_bfloat16(tmp_path: Path, saved: Path) -> None:
    target = load_target(tiny_target_folder(tmp_path / "t", tie=False), "bfloat16")
    drafter = load_drafter(saved, target)
    drafted = block(drafter, target)
    assert {p.dtype for p in drafter.parameters()} == {torch.bfloat16}
    assert drafted.draft_probs_RKV.dtype == drafted.confidence_RK.dtype == torch.float32
    torch.testing.assert_close(drafted.draft_probs_RKV.sum(-1), torch.ones(1, 5))


# ---- public files -------------------------------------------------------------------------------


def test_public_files_may_carry_embedding_and_head(target: Target, saved: Path) -> None:
    own = {
        "embed_tokens.weight": target.embedding_weight.to(torch.bfloat16),
        "lm_head.weight": target.head_weight.clone(),
    }
    expected = block(load_drafter(saved, target), target)
    edit_tensors(saved, lambda tensors: tensors.update(own))
    found = block(load_drafter(saved, target), target)
    assert torch.equal(found.draft_probs_RKV, expected.draft_probs_RKV)
    alone = load_standalone(saved)
    assert torch.equal(alone.shared.head, target.head_weight)


@pytest.mark.parametrize("key", ["embed_tokens.weight", "lm_head.weight"])
def test_another_targets_weights_are_refused(target: Target, saved: Path, key: str) -> None:
    weight = target.embedding_weight if key.startswith("embed") else target.head_weight
    edit_tensors(saved, lambda tensors: tensors.update({key: weight.roll(1, 0).contiguous()}))
    refused(lambda: load_drafter(saved, target), key, kind=IncompatibleDrafterError)
    edit_tensors(saved, lambda tensors: tensors.update({key: weight[:-1].contiguous()}))
    refused(
        lambda: load_drafter(saved, target),
        "drafter (159, 64), target (160, 64)",
        kind=IncompatibleDrafterError,
    )


def test_reduced_head_is_compared_through_d2t(target: Target, tmp_path: Path) -> None:
    drafter = fresh(target, draft_vocab_size=V_DRAFT)
    folder = save_drafter(drafter, tmp_path / "d")
    head = target.head_weight[drafter.d2t].contiguous()
    public = {"lm_head.weight": head, "t2d": torch.zeros(V, dtype=torch.bool)}
    edit_tensors(folder, lambda tensors: tensors.update(public))
    load_drafter(folder, target)
    public["lm_head.weight"] = target.head_weight[:V_DRAFT].contiguous()
    edit_tensors(folder, lambda tensors: tensors.update(public))
    refused(lambda: load_drafter(folder, target), "lm_head", kind=IncompatibleDrafterError)


def test_a_checkpoint_without_head_does_not_stand_alone(saved: Path) -> None:
    refused(lambda: load_standalone(saved), "carries no embedding or head", "Give its target")


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("sample_from_anchor"),
        lambda fields: fields.pop("dspark_kind"),
        lambda fields: fields.pop("confidence_head_with_markov"),
        lambda fields: fields.update(rope_theta=20_000.0, rope_parameters=None, rope_scaling=None),
        lambda fields: fields.pop("layer_types"),
    ],
)
def test_fields_that_public_files_leave_out(
    target: Target, saved: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    expected, config = block(load_drafter(saved, target), target), read_checkpoint(saved)[0]
    edit(saved, change)
    assert read_checkpoint(saved)[0] == config
    found = block(load_drafter(saved, target), target)
    assert torch.equal(found.draft_probs_RKV, expected.draft_probs_RKV)


def test_dflash_is_known_by_its_missing_heads(target: Target, tmp_path: Path) -> None:
    folder = save_drafter(fresh(target, **KINDS["dflash"]), tmp_path / "d")
    edit(folder, lambda fields: (fields.pop("dspark_kind"), fields.pop("markov_rank")))
    assert isinstance(load_drafter(folder, target), DFlashDrafter)


# ---- a drafter of another target ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"hidden_size": 32}, ("hidden size", "drafter 32, target 64")),
        ({"vocab_size": 120}, ("vocabulary size", "drafter 120, target 160")),
        ({"num_target_layers": 12}, ("number of target layers", "drafter 12, target 8")),
        ({"target_layer_ids": (1, 3, 7)}, ("[1, 3, 7]", "layers 0 to 6", "last layer")),
        ({"target_layer_ids": (1, 3, 40)}, ("[1, 3, 40]", "layers 0 to 6")),
        ({"target_layer_ids": (-1, 3, 5)}, ("[-1, 3, 5]", "layers 0 to 6")),
        ({"mask_token_id": V}, ("mask 160, vocabulary 160",)),
        ({"mask_token_id": STOP_ID}, ("mask 2", "stop tokens [2]")),
        ({"sample_from_anchor": False}, ("sample_from_anchor false", "this project true")),
    ],
)
def test_another_target_is_named_with_both_values(
    target: Target, tmp_path: Path, field: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = replace(fit_to_target(BASE, target.spec), **field)
    folder = save_drafter(make_drafter(config), tmp_path / "d")
    refused(lambda: load_drafter(folder, target), *words, kind=IncompatibleDrafterError)
    refused(lambda: make_drafter(config).bind(target), *words, kind=IncompatibleDrafterError)


def test_taps_up_to_the_last_but_one_are_fine(target: Target) -> None:
    assert fresh(target, target_layer_ids=(0, 3, 6)).config.target_layer_ids == (0, 3, 6)


# ---- damaged or foreign files -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(target: Target, saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(lambda: load_drafter(saved, target), "FileNotFoundError", "copy it again")


def test_missing_folder(target: Target, tmp_path: Path) -> None:
    refused(lambda: load_drafter(tmp_path / "nowhere", target), "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_weights(target: Target, saved: Path, share: float) -> None:
    file = saved / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(lambda: load_drafter(saved, target), "Cannot read the drafter", "copy it again")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"hidden_size": 64,', "JSONDecodeError"),
        (b"", "JSONDecodeError"),
        (b"\xff\xfe\x00", "UnicodeDecodeError"),
        (b"[1, 2]", "found: list"),
        (b"null", "found: NoneType"),
        (b"{}", "architecture none"),
    ],
)
def test_bad_json(target: Target, saved: Path, content: bytes, word: str) -> None:
    (saved / "config.json").write_bytes(content)
    refused(lambda: load_drafter(saved, target), word)


@pytest.mark.parametrize(
    "name",
    [
        "hidden_size",
        "vocab_size",
        "num_target_layers",
        "target_layer_ids",
        "mask_token_id",
        "block_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "max_position_embeddings",
    ],
)
def test_missing_field(target: Target, saved: Path, name: str) -> None:
    edit(saved, lambda fields: fields.pop(name))
    refused(lambda: load_drafter(saved, target), "lacks a field", f"'{name}'")


def test_missing_rope_theta(target: Target, saved: Path) -> None:
    edit(saved, lambda fields: fields.pop("rope_parameters"))
    refused(lambda: load_drafter(saved, target), "lacks a field", "rope_theta")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": "64"}, ("hidden_size", "found: 64")),
        ({"block_size": 5.5}, ("block_size", "found: 5.5")),
        ({"num_attention_heads": -4}, ("num_attention_heads", "found: -4")),
        ({"markov_rank": True}, ("markov_rank", "found: True")),
        ({"target_layer_ids": 3}, ("target_layer_ids", "found: 3")),
        ({"target_layer_ids": []}, ("target_layer_ids", "found: []")),
        ({"target_layer_ids": [1, "3"]}, ("target_layer_ids",)),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ("rotary", "yarn")),
        (
            {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear"}},
            ("rotary", "linear"),
        ),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},  # beside a default one
            ("rope_scaling", "rotary", "linear"),
        ),
        ({"rope_scaling": {"factor": 4.0}}, ("rope_scaling", "rotary", "4.0")),
        ({"rope_parameters": "default"}, ("rope_parameters", "no object")),
        ({"rope_theta": 5.0}, ("rope_parameters.rope_theta and rope_theta differ", "20000, 5")),
        ({"rope_parameters": {"rope_theta": 0}}, ("rope_theta", "found: 0")),
        ({"rope_parameters": {"rope_theta": "1e4"}}, ("rope_theta", "found: 1e4")),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "found: 0.5")),
        ({"attention_bias": True}, ("attention_bias", "found: True")),
        ({"use_sliding_window": True}, ("use_sliding_window",)),
        ({"target_layer_ids": [1, 1, 3]}, ("target_layer_ids", "twice")),
        ({"num_key_value_heads": 3}, ("num_key_value_heads", "divisor of 4", "found: 3")),
        ({"head_dim": 15}, ("head_dim", "odd", "found: 15")),
        ({"draft_vocab_size": V + 1}, ("draft_vocab_size", "vocabulary of 160", "found: 161")),
        ({"draft_candidates": -1}, ("draft_candidates", "found: -1")),
        ({"draft_candidates": 4, "markov_rank": 0}, ("draft_candidates", "no sequential head")),
        ({"markov_head_type": "lstm"}, ("markov_head_type", "vanilla", "found: lstm")),
        ({"dspark_kind": "medusa"}, ("dspark_kind", "Known are dspark", "found: medusa")),
        ({"enable_confidence_head": "no"}, ("enable_confidence_head", "found: no")),
        ({"sample_from_anchor": 1}, ("sample_from_anchor", "found: 1")),
        ({"target_name": 7}, ("target_name", "found: 7")),
        ({"architectures": "Qwen3Model"}, ("architecture Qwen3Model",)),
        ({"architectures": [["x"]]}, ("architecture",)),
        ({"rms_norm_eps": float("nan")}, ("rms_norm_eps", "found: nan")),
        ({"rms_norm_eps": -1e-6}, ("rms_norm_eps", "found: -1e-06")),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ("sliding_attention",)),
        ({"hidden_act": "gelu"}, ("gelu", "silu")),
    ],
)
def test_unusable_field(
    target: Target, saved: Path, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    edit(saved, lambda all_fields: all_fields.update(fields))
    refused(lambda: load_drafter(saved, target), *words)


WHOLE = ("hidden_size", "vocab_size", "num_target_layers", "block_size", "num_hidden_layers")
WHOLE += ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
WHOLE += ("max_position_embeddings", "draft_vocab_size", "num_anchors")


@pytest.mark.parametrize("value", [0, -1, 1.0, float("nan"), float("inf"), "7", True, [7]], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_numbers_without_meaning(saved: Path, name: str, value: Any) -> None:
    """Each is named with its file and its value; no drafter that drafts nothing."""
    edit(saved, lambda fields: fields.update({name: value}))
    where = str(saved / "config.json")
    refused(lambda: read_checkpoint(saved), f"{where}: {name} is not", f"found: {value}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(target: Target, saved: Path, value: float) -> None:
    edit_tensors(saved, lambda tensors: tensors["norm.weight"].__setitem__(3, value))
    refused(lambda: load_drafter(saved, target), "norm.weight", "not finite", "found: 1 of 64")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("Gemma4DSparkModel", ("Gemma4DSparkModel", "another shape", "Qwen3DSparkModel")),
        ("LlamaForCausalLM", ("LlamaForCausalLM", "not a drafter", "Qwen3DSparkModel")),
    ],
)
def test_foreign_architecture(
    target: Target, saved: Path, architecture: str, words: tuple[str, ...]
) -> None:
    edit(saved, lambda fields: fields.update(architectures=[architecture]))
    refused(lambda: load_drafter(saved, target), *words)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t.pop("fc.weight"), "fc.weight"),
        (
            lambda t: t.update({"layers.9.mlp.up_proj.weight": torch.ones(2)}),
            "layers.9.mlp.up_proj",
        ),
        (lambda t: t.update({"norm.weight": torch.ones(D + 1)}), "norm.weight"),
        (lambda t: t.pop("confidence_head.proj.bias"), "confidence_head.proj.bias"),
        (lambda t: t.update({"d2t": torch.zeros(V, dtype=torch.long)}), "d2t"),
    ],
)
def test_tensors_that_do_not_match_the_config(
    target: Target, saved: Path, change: Callable[[dict[str, Tensor]], object], word: str
) -> None:
    edit_tensors(saved, change)
    refused(lambda: load_drafter(saved, target), "do not match their config.json", word)


@pytest.mark.parametrize("offset", [-1, V])
def test_d2t_outside_the_vocabulary(target: Target, tmp_path: Path, offset: int) -> None:
    folder = save_drafter(fresh(target, draft_vocab_size=V_DRAFT), tmp_path / "d")
    edit_tensors(folder, lambda t: t["d2t"].fill_(offset))
    refused(lambda: load_drafter(folder, target), "outside the vocabulary")


# ---- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["write_bytes", "write_text"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_failed_write_keeps_the_old_checkpoint(
    target: Target, saved: Path, monkeypatch: pytest.MonkeyPatch, where: str, code: int
) -> None:
    before = {f.name: f.read_bytes() for f in saved.iterdir()}
    whole = getattr(Path, where)

    def half(self: Path, data: Any, **options: Any) -> None:
        whole(self, data[: len(data) // 2], **options)
        raise OSError(code, "as asked")

    with monkeypatch.context() as patched:
        patched.setattr(Path, where, half)
        refused(lambda: save_drafter(fresh(target), saved), "cannot write", "hoose")
    assert {f.name: f.read_bytes() for f in saved.iterdir()} == before
    assert [f.name for f in saved.parent.iterdir()] == [saved.name]
    load_drafter(saved, target)


def test_a_file_in_the_way(target: Target, tmp_path: Path) -> None:
    (tmp_path / "d").write_text("mine")
    refused(lambda: save_drafter(fresh(target), tmp_path / "d"), "cannot write")
    assert (tmp_path / "d").read_text() == "mine"


def test_saving_again_replaces_the_whole_folder(target: Target, saved: Path) -> None:
    (saved / "left-over.txt").write_text("old")
    newer = fresh(target, block_size=3)
    save_drafter(newer, saved)
    assert sorted(f.name for f in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert load_drafter(saved, target).config.block_size == 3
