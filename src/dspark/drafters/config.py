"""What the configurations of all kinds of drafter share; each kind has a dataclass of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

from dspark.drafters.fields import Fields
from dspark.errors import IncompatibleDrafterError
from dspark.targets.family import TargetSpec

# Key of the recipe, its value, the other drafter's value, whether they fit.
Check = tuple[str, Any, Any, bool]


@dataclass(frozen=True, slots=True)
class SequentialHead:
    """A drafter's sequential head in figures.

    Attributes:
        kind: its public name.
        rank: r of the transition bias.
        candidates: best parallel logits that it scores alone; 0 for all.
    """

    kind: str
    rank: int
    candidates: int = 0


@dataclass(frozen=True, kw_only=True)
class DrafterConfig:
    """Shape of a drafter; sizes in tokens, layers or features.

    A kind's own dataclass adds its fields, and overrides what the class variables and properties
    here say of it.

    Attributes:
        kind: name in the registry, in recipes and in `dspark_kind` of checkpoints.
        architecture: name in `architectures` of checkpoints.
        reads_taps: the drafter reads the target's taps, else its final-normed last state.
        public_layout: other engines know the architecture.
        target_layer_ids: 0-based decoder layers whose raw output is tapped; none for a drafter
            that reads the last state.
        block_size: draft tokens a round; of a chain drafter, the longest chain.
        draft_vocab_size: tokens the drafter can propose; None for the whole vocabulary.
    """

    kind: ClassVar[str]
    architecture: ClassVar[str]
    reads_taps: ClassVar[bool] = True
    public_layout: ClassVar[bool] = False

    hidden_size: int
    vocab_size: int
    num_target_layers: int
    target_layer_ids: tuple[int, ...] = ()
    block_size: int = 7
    num_layers: int = 2
    num_heads: int = 8
    num_kv_heads: int = 8
    head_dim: int = 64
    intermediate_size: int = 1536
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_positions: int = 8192
    draft_vocab_size: int | None = None
    target_name: str = ""

    @property
    def out_vocab(self) -> int:
        """Width of the drafter's logits."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def gives_confidence(self) -> bool:
        """Whether a confidence head rates the slots."""
        return False

    @property
    def plain_confidence(self) -> bool:
        """Whether that head does not see the previous token."""
        return False

    @property
    def sequential_head(self) -> SequentialHead | None:
        """The sequential head, where there is one."""
        return None

    @property
    def from_texts(self) -> dict[str, Any]:
        """What was chosen by the training texts; a resumed run must choose the same."""
        return {}

    # ---- config.json ------------------------------------------------------------------------

    def own_fields(self) -> dict[str, Any]:
        """The kind's own fields of `config.json`."""
        return {"block_size": self.block_size}

    @classmethod
    def read_own(cls, given: Fields) -> dict[str, Any]:
        """The kind's own values, from its fields of `config.json`."""
        return {"block_size": given.whole("block_size")}

    @classmethod
    def recognises(cls, given: Fields) -> bool:
        """Whether a file of this architecture that names no kind is one of this kind."""
        return True

    def to_json(self, more: dict[str, Any]) -> dict[str, Any]:
        """DeepSpec's config fields (docs/formats.md, "Drafter folder").

        Args:
            more: further fields, which win.
        """
        fields: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": "qwen3",
            "dspark_kind": self.kind,
            "target_name": self.target_name,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_target_layers": self.num_target_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_positions,
            "layer_types": ["full_attention"] * self.num_layers,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": False,
            "target_layer_ids": list(self.target_layer_ids),
            "dtype": "bfloat16",
        }
        fields |= self.own_fields()
        if self.draft_vocab_size:
            fields["draft_vocab_size"] = self.draft_vocab_size
        return fields | more

    @classmethod
    def from_json(cls, given: Fields) -> Self:
        """The configuration that a file describes.

        Raises:
            CheckpointError: a field is missing or of no use; it names file, key and value.
        """
        given.check_layers()
        own = cls.read_own(given)
        heads, kv_heads = given.whole("num_attention_heads"), given.whole("num_key_value_heads")
        if heads % kv_heads:
            raise given.refusal("num_key_value_heads", f"no divisor of {heads} heads")
        head_dim = given.whole("head_dim")
        if head_dim % 2:
            raise given.refusal("head_dim", "odd, and rotary positions turn pairs")
        vocabulary = given.whole("vocab_size")
        reduced = given.whole("draft_vocab_size", default=None)
        if reduced is not None and reduced > vocabulary:
            raise given.refusal("draft_vocab_size", f"more than the vocabulary of {vocabulary}")
        return cls(
            hidden_size=given.whole("hidden_size"),
            vocab_size=vocabulary,
            num_target_layers=given.whole("num_target_layers"),
            target_layer_ids=given.taps(may_be_none=not cls.reads_taps),
            num_layers=given.whole("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=given.whole("intermediate_size"),
            rms_norm_eps=given.number("rms_norm_eps"),
            rope_theta=given.rope_theta(),
            max_positions=given.whole("max_position_embeddings"),
            draft_vocab_size=reduced,
            target_name=given.text("target_name", default=""),
            **own,
        )

    # ---- fit --------------------------------------------------------------------------------

    def check_fits(self, spec: TargetSpec, stop_ids: frozenset[int]) -> None:
        """Refuse a target that contradicts the configuration.

        Raises:
            IncompatibleDrafterError: with both values.
        """
        pairs = [
            ("hidden size", self.hidden_size, spec.hidden_size),
            ("vocabulary size", self.vocab_size, spec.vocab_size),
            ("number of target layers", self.num_target_layers, spec.num_layers),
        ]
        for name, mine, theirs in pairs:
            if mine != theirs:
                raise IncompatibleDrafterError(
                    f"The drafter was made for another target: {name}",
                    found=f"drafter {mine}, target {theirs}",
                    fix="Use the drafter of this target, or train one with `dspark train`",
                )
        last = spec.num_layers - 1
        if any(not 0 <= i < last for i in self.target_layer_ids):
            raise IncompatibleDrafterError(
                "The drafter taps a layer that the target does not offer",
                found=f"tap ids {list(self.target_layer_ids)}, target layers 0 to {last - 1}",
                fix="The last layer cannot be tapped: its stored state is already normed",
            )

    # ---- going on from another drafter ------------------------------------------------------

    @classmethod
    def same_layers(cls, start: DrafterConfig) -> bool:
        """Whether layers of a drafter `start` are layers of this kind."""
        return start.kind == cls.kind

    @classmethod
    def continuing(cls, asked: Any, start: DrafterConfig) -> Iterator[Check]:
        """The kind's own keys of a recipe that goes on from a drafter of the same layers."""
        yield from ()


Config = TypeVar("Config", bound=DrafterConfig)


def default_tap_ids(num_layers: int, count: int = 5) -> tuple[int, ...]:
    """Taps spread evenly from layer 1 to layer L - 3 (DSpark's public configurations)."""
    last = max(num_layers - 3, 1)
    steps = min(count, last)
    if steps == 1:
        return (max(min(1, num_layers - 2), 0),)
    gaps = steps - 1
    return tuple(1 + (2 * (last - 1) * i + gaps) // (2 * gaps) for i in range(steps))


def fit_to_target(config: Config, spec: TargetSpec) -> Config:
    """The configuration with everything that the target dictates filled in."""
    return replace(
        config,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        num_target_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_positions=spec.max_positions,
    )
