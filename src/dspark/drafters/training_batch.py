"""What trainer and losses ask of any batch of training."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Batch = TypeVar("Batch", bound=Any)


class TrainingBatch(Protocol):
    """What the trainer asks of any batch."""

    label_valid_AK: Tensor

    def to(self, device: torch.device) -> TrainingBatch:
        """The batch with its tensors on another device."""


def moved(batch: Batch, device: torch.device) -> Batch:
    """A dataclass of tensors and lists, the tensors on another device."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    tensors = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(batch, **tensors)
