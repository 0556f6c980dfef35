"""Versioned JSON files, and where they came from."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dspark import __version__
from dspark.artifacts.folders import cache_dir, data_dir, expanded
from dspark.artifacts.locks import is_lock
from dspark.artifacts.writing import atomic_write_json
from dspark.errors import DataError


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_artifact(
    path: str | Path,
    schema: str,
    data: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes one JSON object: `schema` ("name/version"), `provenance`, then the keys of `data`."""
    assert not {"schema", "provenance"} & data.keys()
    atomic_write_json(path, {"schema": schema, "provenance": provenance or {}, **data})


def read_artifact(path: str | Path, schema: str) -> dict[str, Any]:
    """Reads what `write_artifact` wrote.

    Returns:
        the whole object, the keys `schema` and `provenance` included.

    Raises:
        DataError: the file is missing, is no JSON object, or has another schema or version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise DataError(f"cannot read {path}", found=exc.strerror, fix="Check the path") from exc
    except ValueError as exc:
        fix = f"Make the file again; a {schema} file was expected"
        raise DataError(f"{path} is damaged: not valid JSON", found=exc, fix=fix) from exc
    found = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != schema:
        raise DataError(
            f"{path} is not a {schema} file",
            found=found or "no schema",
            fix="Make it again with this version, or give another file",
        )
    return content


# ---------------------------------------------------------------------------------- provenance


QUOTED_PATH = r'"(/[^"]*)"'


def _portable(argument: str) -> str:
    """An argument without this machine's folders: files of results are meant to be shared."""
    option, equals, value = argument.rpartition("=")
    if value.startswith("["):  # a list of files, as in --set data.responses=["a", "b"]
        shorten = lambda quoted: f'"{_portable(quoted[1])}"'  # noqa: E731
        return f"{option}{equals}{re.sub(QUOTED_PATH, shorten, value)}"
    path = expanded(value)
    if not path.is_absolute():
        return argument
    for label, base in (
        ("", Path.cwd()),
        ("$DSPARK_DATA/", data_dir().absolute()),
        ("$DSPARK_CACHE/", cache_dir().absolute()),
    ):
        if path.is_relative_to(base):
            return f"{option}{equals}{label}{path.relative_to(base).as_posix()}"
    return f"{option}{equals}{path.name}"


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_name() -> str | None:
    """The CUDA device's name, if torch is loaded and sees one; nothing is imported to find out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_name())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() and not is_lock(file))


def _arguments() -> list[str]:
    """The command line as text; a locale without UTF-8 gives its bytes one by one."""
    return [os.fsencode(text).decode("utf-8", "backslashreplace") for text in sys.argv[1:]]


def provenance(
    command: str,
    seeds: Mapping[str, int] | None = None,
    inputs: Iterable[str | Path] = (),
) -> dict[str, Any]:
    """What a result file needs so that someone can make it again.

    Args:
        command: the verb or function that made it, such as "dspark train".
        seeds: every seed in use, by name.
        inputs: files read, or folders of which every file counts; kept by SHA-256.

    Raises:
        DataError: an input cannot be read.
    """
    hashes: dict[str, str] = {}
    for path in map(Path, inputs):
        try:
            hashes |= {_portable(str(file.absolute())): sha256_file(file) for file in _files(path)}
        except OSError as exc:
            raise DataError(f"cannot read {path}", found=exc.strerror, fix="Check it") from exc
    packages = ("torch", "transformers", "safetensors", "numpy")
    return {
        "command": command,
        "argv": [Path(sys.argv[0]).name, *map(_portable, _arguments())],
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "dspark": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "count": cpu_count()},
        "device": _device_name(),
        "seeds": dict(seeds or {}),
        "inputs": hashes,
    }
