"""Training by several processes, on Hugging Face Accelerate.

Each process takes its part of every step's sequences; gradients are averaged by torch's
DistributedDataParallel. One process is a world of one: nothing is wrapped and nothing is sent.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    gather_object,
)
from torch import Tensor, nn

from dspark.drafters.drafter import Drafter
from dspark.drafters.training_batch import TrainingBatch
from dspark.errors import ConfigError
from dspark.maths.losses import DraftLoss, LossWeights, StepTotals

Value = TypeVar("Value")

SHARDED = (
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
    DistributedType.XLA,
)


class LossModule(nn.Module):
    """A drafter's loss as a forward pass, where the averaging of gradients hooks in."""

    def __init__(self, drafter: Drafter) -> None:
        super().__init__()
        self.drafter = drafter

    def forward(
        self, batch: TrainingBatch | None, weights: LossWeights, totals: StepTotals
    ) -> DraftLoss:
        """:meth:`Drafter.loss`; without a batch a zero that all weights take part in."""
        if batch is not None:
            loss: DraftLoss = self.drafter.loss(batch, weights, totals)
            return loss
        parts = [p.flatten()[:0].sum() for p in self.drafter.parameters() if p.requires_grad]
        return DraftLoss(torch.stack(parts).sum(), 0.0, 0.0, 0.0, torch.zeros(0, 0))


class Parallel:
    """The processes of a run, as `accelerate launch` or `torchrun` started them.

    Attributes:
        rank, world: this process's number and how many there are.
        device: where this process computes.

    Raises:
        ConfigError: they were started to share out weights and not only sequences.
    """

    def __init__(self) -> None:
        self._accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # the trainer has its own autocast
            device_placement=False,  # the drafter is where its target is
            # The loss is normalised over the whole step already.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # Buffers never change. Keeping them still also lets processes differ in how many
            # micro-batches they have.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        kind = self._accelerator.distributed_type
        if kind in SHARDED:
            raise ConfigError(
                "Training shares out sequences, not weights: one process saves and measures the "
                "whole drafter, and Muon needs whole matrices",
                found=f"distributed type {kind.value}",
                fix="Launch with --multi_gpu alone, or set ACCELERATE_USE_FSDP=false",
            )
        self.rank: int = self._accelerator.process_index
        self.world: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process logs, saves, reports and measures."""
        return self.rank == 0

    def prepare(self, drafter: Drafter) -> nn.Module:
        """The drafter's loss as a module whose backward averages gradients over processes."""
        module: nn.Module = self._accelerator.prepare_model(LossModule(drafter))
        return module

    def micro_batch(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch; gradients travel with the last."""
        if last:
            return nullcontext()
        held: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return held

    def backward(self, loss: Tensor) -> None:
        """Backward of this process's share of a sum over all processes."""
        self._accelerator.backward(loss * self.world)  # gradients are averaged, so this undoes it

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        reduced: list[float] = self._accelerator.reduce(sums, "sum").tolist()
        return reduced

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, the main one's first."""
        values: list[Value] = gather_object([value])
        return values

    def main_first(self) -> AbstractContextManager[None]:
        """A block that the main process has finished before the others begin it."""
        first: AbstractContextManager[None] = self._accelerator.main_process_first()
        return first

    def wait(self) -> None:
        """Return once every process has come here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the group of processes, at the very end; one of several ends here, in success."""
        self._accelerator.end_training()
        if self.world > 1:
            # Gloo's threads outlive the group, and one that is late on a busy machine aborts a
            # Python that takes itself down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
