"""DSpark's decoding loop (arXiv 2607.05147) for one request, on torch and transformers alone.

python examples/reference.py --prompt "Why is the sky blue?" --temperature 1

A round drafts a block, estimates how likely each token is to survive, chooses how many to verify
(Algorithm 1), verifies them in one forward of the target and commits. There are no batches and no
calibration. At temperature 0 the text is the engine's (tests/test_examples.py). Drafters need a
vanilla Markov head and a confidence head, targets the Llama or Qwen3 shape.

docs/algorithms.md has the formulas. Suffixes: K block slots, T context positions, N rows, D hidden,
H heads, P head dimension, V vocabulary.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

TARGET = Path.home() / ".cache/dspark/targets/smollm2-135m"  # from `dspark fetch smollm2-135m`
DRAFTER = Path(__file__).parents[1] / "drafters/smollm2-135m/dspark"
# The cost curve, convex: seconds of a round with 0, 1, … draft tokens to verify.
SECONDS = [1 + 0.03 * tokens for tokens in range(17)]


class Drafter:
    """Parallel backbone, Markov head and confidence head (§3), with the context of one request."""

    def __init__(self, folder: Path, target) -> None:
        self.target, self.config = target, json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        d2t = tensors.pop("d2t", torch.zeros(self.config["vocab_size"], dtype=torch.int64))
        self.d2t = d2t + torch.arange(len(d2t))  # target id of each draft id; stored as an offset
        self.weights = {name: tensor.float() for name, tensor in tensors.items()}
        half = torch.arange(0, self.config["head_dim"], 2) / self.config["head_dim"]
        self.frequencies = self.config["rope_parameters"]["rope_theta"] ** -half
        none = torch.empty(self.config["num_key_value_heads"], 0, self.config["head_dim"])
        self.context = [(none, none)] * self.config["num_hidden_layers"]  # keys, values [H, T, P]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.config["rms_norm_eps"])

    def heads(self, name: str, x_ND: Tensor) -> Tensor:
        """Queries, keys or values [H, N, P] of the positions behind the context."""
        x_HNP = self.linear(f"{name}_proj", x_ND).unflatten(1, (-1, self.config["head_dim"]))
        x_HNP = x_HNP.transpose(0, 1)
        if name.endswith("v"):
            return x_HNP
        positions_N = self.context[0][0].shape[1] + torch.arange(len(x_ND))
        angles_NP = positions_N[:, None] * self.frequencies.repeat(2)
        first, second = self.norm(f"{name}_norm", x_HNP).chunk(2, -1)  # QK-norm, then rotary
        turned = torch.cat([-second, first], -1)
        return torch.cat([first, second], -1) * angles_NP.cos() + turned * angles_NP.sin()

    def with_context(self, layer: int, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the context so far and of x behind it."""
        new = (self.heads(f"layers.{layer}.self_attn.{name}", x_ND) for name in "kv")
        keys, values = (torch.cat(pair, 1) for pair in zip(self.context[layer], new, strict=True))
        return keys, values

    def extend(self, states: list[Tensor]) -> None:
        """Take in the target's layer outputs [N, D] of committed positions (eqs. 2 and 3)."""
        features = torch.cat([states[i + 1] for i in self.config["target_layer_ids"]], -1)
        context_ND = self.norm("hidden_norm", self.linear("fc", features))  # H_ctx
        layers = range(len(self.context))
        self.context = [self.with_context(layer, context_ND) for layer in layers]

    def backbone(self, anchor: int) -> Tensor:
        """h_1 … h_K [K, D] in one pass over [anchor, MASK, …, MASK] (§3.1)."""
        ids = [anchor] + [self.config["mask_token_id"]] * (self.config["block_size"] - 1)
        x_KD = self.target.get_input_embeddings()(torch.tensor(ids))
        for layer in range(len(self.context)):
            name = f"layers.{layer}"
            normed = self.norm(f"{name}.input_layernorm", x_KD)
            queries = self.heads(f"{name}.self_attn.q", normed)
            keys, values = self.with_context(layer, normed)  # a slot sees its whole block
            mixed = F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)
            x_KD = x_KD + self.linear(f"{name}.self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
            normed = self.norm(f"{name}.post_attention_layernorm", x_KD)
            gate, up = (self.linear(f"{name}.mlp.{part}_proj", normed) for part in ("gate", "up"))
            x_KD = x_KD + self.linear(f"{name}.mlp.down_proj", F.silu(gate) * up)
        return self.norm("norm", x_KD)

    def draft(self, anchor: int, temperature: float) -> tuple[list[int], Tensor, list[float]]:
        """x_1 … x_K, the distributions p_d [K, V] they are drawn from, and c_1 … c_K."""
        hidden_KD = self.backbone(anchor)
        base_KV = self.target.get_output_embeddings()(hidden_KD)[:, self.d2t]  # U_k
        probs_KV = torch.zeros(len(base_KV), self.config["vocab_size"])
        ids, confidences = [anchor], []
        for k, hidden_D in enumerate(hidden_KD):
            previous = self.weights["markov_head.markov_w1.weight"][ids[-1]]  # W_1[x_{k-1}]
            logits = base_KV[k] + self.linear("markov_head.markov_w2", previous)  # U_k + B_k
            probs_KV[k, self.d2t] = probabilities(logits, temperature)
            seen = torch.cat([hidden_D, previous])  # x_<k, and never x_k itself (§3.2.1)
            confidences.append(float(self.linear("confidence_head.proj", seen).sigmoid()))
            ids.append(draw(probs_KV[k]))
        return ids[1:], probs_KV, confidences


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """The distribution of the next token; at temperature 0 all of it lies on the arg-max."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits / temperature).softmax(-1)


def draw(probs_V: Tensor) -> int:
    return int(torch.multinomial(probs_V, 1))


def verify_length(confidences: list[float], seconds: list[float]) -> int:
    """Algorithm 1 for one request: admit while Θ = τ / seconds rises; stop at the first dip."""
    survival = tau = 1.0
    for k, confidence in enumerate(confidences):
        survival *= confidence  # a_{k+1} = c_1 · … · c_{k+1}
        if (tau + survival) / seconds[k + 1] <= tau / seconds[k]:
            return k
        tau += survival
    return len(confidences)


def verify(ids: list[int], draft_KV: Tensor, target_NV: Tensor) -> tuple[int, int]:
    """The number of accepted draft tokens, and the correction or bonus token behind them."""
    for k, token in enumerate(ids):
        p_t, p_d = target_NV[k], draft_KV[k]
        if torch.rand(()) * p_d[token] >= p_t[token]:
            return k, draw((p_t - p_d).clamp(min=0))
    return len(ids), draw(target_NV[len(ids)])


@torch.inference_mode()
def generate(target, folder, prompt, most, temperature=0.0, seconds=SECONDS):
    """Tokens of the completion, at most so many; confidences and accepted tokens by round."""
    drafter, cache = Drafter(folder, target), DynamicCache(config=target.config)
    options = {"past_key_values": cache, "output_hidden_states": True}
    out = target(torch.tensor([prompt]), **options)
    drafter.extend([states[0] for states in out.hidden_states])
    output = [draw(probabilities(out.logits[0, -1], temperature))]
    rounds, stop = [], target.generation_config.eos_token_id
    stops = {stop} if isinstance(stop, int) else set(stop)
    while len(output) < most and not stops & set(output):
        ids, draft_KV, confidences = drafter.draft(output[-1], temperature)
        ids = ids[: verify_length(confidences, seconds)]
        out = target(torch.tensor([[output[-1], *ids]]), **options)
        accepted, last = verify(ids, draft_KV, probabilities(out.logits[0], temperature))
        cache.crop(accepted - len(ids))  # the rows of rejected tokens
        drafter.extend([states[0, : accepted + 1] for states in out.hidden_states])
        rounds.append((confidences, accepted))
        output += [*ids[:accepted], last]
    ends = [place for place, token in enumerate(output, 1) if token in stops]
    return output[: min([most, *ends])], rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--drafter", type=Path, default=DRAFTER)
    parser.add_argument("--prompt", default="Write a Python function that adds two numbers.")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, nargs="+", default=SECONDS)
    args = parser.parse_args()
    target = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.target)
    chat = [{"role": "user", "content": args.prompt}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    options = args.tokens, args.temperature, args.seconds
    output, rounds = generate(target, args.drafter, prompt, *options)
    print(tokenizer.decode(output, skip_special_tokens=True))
    print(
        f"\n{len(output)} tokens in {len(rounds)} rounds, {len(output) / len(rounds):.2f} a round"
    )


if __name__ == "__main__":
    main()
