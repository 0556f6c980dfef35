"""A confidence head that sees the draft's distributions as well (ours, beyond DSpark §3.2.1).

The paper's head is linear in h_k and W_1[x_{k-1}]. Above temperature 0 two more things are known
before x_k is drawn: how spread p_d is at slot k, and how likely the token drawn at slot k - 1 was.
This head takes them too. Since a slot's number never depends on x_k or on anything behind it,
cutting a draft by it is as lossless as by the paper's.

It lies beside a drafter's weights in a file of its own, so that other engines find the checkpoint
they know. `dspark confidence` fits it.

Suffixes: N any leading shape, R requests, K block slots, V draft vocabulary, C clues, H hidden
units, D hidden, r Markov rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dspark.artifacts import atomic_write_bytes, sha256_file
from dspark.errors import CheckpointError, IncompatibleDrafterError

# In safetensors' format, but not by that name: other engines read every *.safetensors of a folder.
FILE = "confidence.head"
SCHEMA = "dspark.confidence/1"
# Of 256 groups of the draft vocabulary's tokens: best ones whose probabilities are seen alone, and
# numbers of best ones that are seen together; see `_spread`.
_GROUPS, _ALONE, _TOGETHER = 256, 8, (1, 4, 16, 64)
LINEAR = 0  # place of the linear head's logit among ...
_OWN = 1 + _ALONE + len(_TOGETHER) + 1  # ... the numbers on a slot itself
_DRAWN = 3  # on the token drawn in it
_ROWS = 64  # of probabilities at a time, which are then read again from a cache
_EDGE = 1e-4  # probabilities nearer to 0 and 1 than this look alike


def clue_count(hidden_size: int, markov_rank: int, block_size: int) -> int:
    """C, the numbers that `clues` gives of each slot."""
    return hidden_size + markov_rank + 2 * _OWN + _DRAWN + block_size


def clues(
    hidden_RKD: Tensor,
    previous_RKr: Tensor | None,
    probs_RKV: Tensor,
    drawn_RK: Tensor,
    linear_RK: Tensor,
    block_size: int,
) -> Tensor:
    """What is known of each slot before its token is drawn, float32 [R, K, C].

    Args:
        hidden_RKD: the backbone's states.
        previous_RKr: W_1 rows of the tokens before each slot, if the drafter has them.
        probs_RKV: what the tokens were drawn from.
        drawn_RK: the tokens, as draft-vocabulary ids; slot k's goes into the clues of k + 1.
        linear_RK: logits of the linear confidence head.
        block_size: γ, of which K may be a part.
    """
    best_RKG, square_RK1 = _spread(probs_RKV)
    p_RK1 = probs_RKV.gather(-1, drawn_RK[..., None])
    logs = torch.cat([best_RKG[..., :_ALONE], square_RK1, p_RK1], -1).clamp_(min=1e-9).log_()
    together = best_RKG.cumsum(-1)[..., _places(hidden_RKD.device)]
    logits = torch.cat([together, p_RK1], -1).clamp_(_EDGE, 1 - _EDGE).logit_()
    first, square, p_log = logs.split((_ALONE, 1, 1), -1)
    together, p_logit = logits.split((len(_TOGETHER), 1), -1)
    own = torch.cat([linear_RK.float()[..., None], first, together, square], -1)
    seen = torch.cat([own, p_log, p_log - first[..., :1], p_logit], -1)
    before = _one_later(seen)
    which = _slots(block_size, hidden_RKD.device)[: hidden_RKD.shape[1]]
    parts = [own, before, which.expand(len(hidden_RKD), -1, -1)]
    if previous_RKr is not None:
        parts.insert(0, previous_RKr.float())
    return torch.cat([hidden_RKD.float(), *parts], -1)


def _spread(probs_RKV: Tensor) -> tuple[Tensor, Tensor]:
    """How spread the distributions are: their largest probabilities, in order, and Σ p².

    The largest are found among those of each group, every 256th token being of one group. Two of
    the best that share a group are rare, and a full order of the vocabulary is expensive.
    """
    best, squares = [], []
    for probs_NV in probs_RKV.flatten(0, 1).split(_ROWS):
        squares.append(torch.linalg.vector_norm(probs_NV, dim=-1, keepdim=True).square_())
        if missing := -probs_NV.shape[1] % _GROUPS:
            probs_NV = torch.nn.functional.pad(probs_NV, (0, missing))
        best_NG = probs_NV.view(len(probs_NV), -1, _GROUPS).amax(1)
        best.append(best_NG.topk(_TOGETHER[-1], -1).values)
    shape = (*probs_RKV.shape[:2], -1)
    return torch.cat(best).view(shape), torch.cat(squares).view(shape)


def _one_later(x_RKn: Tensor) -> Tensor:
    """Each slot's numbers at the slot behind it, zeros at the first."""
    return torch.nn.functional.pad(x_RKn[:, :-1], (0, 0, 1, 0))


@lru_cache
def _places(device: torch.device) -> Tensor:
    return torch.tensor([count - 1 for count in _TOGETHER], device=device)


@lru_cache
def _slots(block_size: int, device: torch.device) -> Tensor:
    """Which slot a slot is, one-hot."""
    return torch.eye(block_size, device=device)


@dataclass(slots=True, eq=False)
class InformedConfidence:
    """Logit of c_k from the clues of slot k: one hidden layer with GELU.

    Attributes:
        inner_HC, inner_bias_H: the hidden layer, its inputs as `clues` gives them.
        outer_H, outer_bias: the last layer.
        sha256: of the file it was read from, "" for one that was not.
    """

    inner_HC: Tensor
    inner_bias_H: Tensor
    outer_H: Tensor
    outer_bias: Tensor
    sha256: str = ""

    def logits(self, clues_NC: Tensor) -> Tensor:
        """Confidence logits [N] of clues [N, C]."""
        inner_NH = torch.nn.functional.linear(clues_NC, self.inner_HC, self.inner_bias_H)
        return torch.nn.functional.gelu(inner_NH) @ self.outer_H + self.outer_bias

    def to(self, device: torch.device) -> InformedConfidence:
        """The same on a device."""
        return InformedConfidence(
            self.inner_HC.to(device),
            self.inner_bias_H.to(device),
            self.outer_H.to(device),
            self.outer_bias.to(device),
            self.sha256,
        )


_TENSORS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")


def save_informed(
    head: InformedConfidence, folder: Path, weights: Path, notes: dict[str, str]
) -> Path:
    """Put a head beside the drafter that it was fitted for.

    Args:
        weights: the drafter's weights; the head is refused beside others.
        notes: further text that the file is to carry.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = (head.inner_HC, head.inner_bias_H, head.outer_H, head.outer_bias)
    named = {name: t.detach().cpu().contiguous() for name, t in zip(_TENSORS, tensors, strict=True)}
    about = {"schema": SCHEMA, "drafter": sha256_file(weights), **notes}
    path = folder / FILE
    atomic_write_bytes(path, save(named, metadata=about), error=CheckpointError)
    return path


def load_informed(folder: Path, weights: Path, clue_count: int) -> InformedConfidence | None:
    """The head beside a drafter; None without one.

    Raises:
        CheckpointError: the file is damaged, or another version's.
        IncompatibleDrafterError: it was fitted for other weights.
    """
    path = folder / FILE
    if not path.exists():
        return None
    fix = "Remove it, and fit another with `dspark confidence`"
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise CheckpointError(f"Cannot read {path}", found=found, fix=fix) from error
    if about.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} is no confidence head of this version",
            found=f"schema {about.get('schema')}",
            fix=fix,
        )
    if about.get("drafter") != (own := sha256_file(weights)):
        raise IncompatibleDrafterError(
            f"The confidence head {path} was fitted for another drafter",
            found=f"head {str(about.get('drafter'))[:12]}, drafter {own[:12]}",
            fix=fix,
        )
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    units = shapes.get("inner.bias", (0,))[:1]
    wanted = dict(zip(_TENSORS, ((*units, clue_count), units, units, ()), strict=True))
    if shapes != wanted:
        raise CheckpointError(
            f"{path} does not fit its drafter", found=f"{shapes}, not {wanted}", fix=fix
        )
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            found = f"{tensor.dtype}, {int(tensor.isfinite().sum())} of {tensor.numel()} finite"
            raise CheckpointError(f"{path}: {name} holds no numbers", found=found, fix=fix)
    inner_HC, inner_bias_H, outer_H, outer_bias = (tensors[name] for name in _TENSORS)
    return InformedConfidence(inner_HC, inner_bias_H, outer_H, outer_bias, sha256_file(path))
