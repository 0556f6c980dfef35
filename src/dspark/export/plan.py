"""What serving the same models elsewhere takes: files, and command lines in order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dspark.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """How to draft.

    Attributes:
        folder: of the drafter, with all tensors that the engine asks for.
        length: draft tokens a round.
        adaptive: verify what pays, by the confidences.
        threshold: verify up to the first slot whose confidence is below; None for no limit.
    """

    folder: Path
    length: int
    adaptive: bool = False
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to serve, in this project's words.

    Attributes:
        target: a folder or a Hugging Face id.
        name: what clients call the model.
        drafting: None serves the target alone.
        slots: answers made at the same time.
        max_len: longest text in tokens, prompt included.
        tensor_parallel: GPUs the target is spread over, on all nodes together.
        node_rank: which of the `nodes` machines this is; 0 is the one that answers requests.
        head_address: HOST or HOST:PORT of node 0, where they meet.
        made: folder for files that have to be made first.
    """

    target: str
    name: str
    drafting: Drafting | None
    host: str
    port: int
    slots: int
    max_len: int
    dtype: str
    threads: int | None
    api_key_file: Path | None
    tensor_parallel: int
    nodes: int
    node_rank: int
    head_address: str | None
    made: Path

    def meeting_point(self, port: int) -> tuple[str, int]:
        """Host and port of node 0.

        Args:
            port: where the address names none.

        Raises:
            ConfigError: there is no address, or its port is no number.
        """
        address = self.head_address or ""
        host, colon, tail = address.rpartition(":")
        if not colon or tail.endswith("]"):  # an IPv6 address in brackets has colons of its own
            return self._host(address), port
        if not tail.isdigit() or not 0 < int(tail) < 65536:
            raise ConfigError(
                "--head-address has no usable port",
                found=address,
                fix="Write HOST or HOST:PORT; an IPv6 host stands in brackets",
            )
        return self._host(host), int(tail)

    def _host(self, host: str) -> str:
        if not host:
            raise ConfigError(
                "Several nodes need to know where they meet",
                found=self.head_address,
                fix="Give node 0's address with --head-address",
            )
        return host


@dataclass(frozen=True, slots=True)
class Plan:
    """What one node does.

    Attributes:
        files: that must be there.
        by_hand: command lines that make some of them, run once.
        steps: command lines in order; the last one runs until it is stopped.
    """

    files: tuple[Path, ...]
    by_hand: tuple[tuple[str, ...], ...]
    steps: tuple[tuple[str, ...], ...]


def check_nodes(wish: Wish) -> None:
    """Refuse numbers of machines and GPUs that do not fit together.

    Raises:
        ConfigError: they do not.
    """
    if wish.node_rank >= wish.nodes:
        raise ConfigError(
            f"There is no node {wish.node_rank}",
            found=f"{wish.nodes} node{'s' * (wish.nodes > 1)}",
            fix="Nodes count from 0; say how many there are with --nodes",
        )
    if wish.nodes == 1 and wish.head_address:
        raise ConfigError("--head-address is for several nodes", fix="Give their number: --nodes")
    if wish.tensor_parallel % wish.nodes:
        raise ConfigError(
            "The GPUs cannot be spread evenly over the nodes",
            found=f"{wish.tensor_parallel} over {wish.nodes}",
            fix="--tensor-parallel counts the GPUs of all nodes together",
        )


def script(plans: Sequence[Plan]) -> str:
    """The plans of all nodes as lines for a shell; what is not a command begins with #."""
    lines = [f"# needs {shlex.quote(str(file))}" for file in plans[0].files]
    if plans[0].by_hand:
        lines += ["# once, in a checkout of llama.cpp:", *map(shlex.join, plans[0].by_hand)]
        lines += ["# then:"]
    for rank, plan in enumerate(plans):
        lines += [f"# on node {rank}:"] if len(plans) > 1 else []
        lines += map(shlex.join, plan.steps)
    return "\n".join(lines) + "\n"
