"""Targets kept in the cache folder as they are when loaded: weights laid out, tokenizer, facts.

The first load of a target's folder leaves two files in `kept/`; later ones map the second and need
neither transformers nor the folder's weights.

- `PLACE.json` says what lies in the folder: content and facts, and the stamps of its files. PLACE
  is a hash of the path. While the stamps are the same nothing of the folder is read again.
- `CONTENT-TYPE-WEIGHTS-LAYOUT-MADE.kept` holds the target (`kept_file`). CONTENT is a hash of the
  folder's files, MADE of all that decides how weights and tokenizer are kept.

What cannot be read or written is passed over: the target is then loaded as if nothing were kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from dspark import __version__
from dspark.artifacts import cache_dir, read_artifact, sha256_file, write_artifact
from dspark.errors import ConfigError, DataError, DSparkError
from dspark.native import compiling
from dspark.targets import kept_file
from dspark.targets.family import TargetSpec

SCHEMA = "dspark.kept_place/1"
ENDING = ".kept"
LIMIT = "DSPARK_KEPT_GIB"
DEFAULT_GIB = 8.0
FREE_BYTES = 2**30  # that stay free on the disk
PANELS, ROWS = "panels", "rows"  # of our kernels, of PyTorch
# What a target is read from, beside any *.jinja.
_READ = (".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken")
# Sources that decide what is kept, beside those of the kernels.
_SOURCES = (
    *("kept.py", "kept_file.py", "kept_target.py", "lean.py", "lean_parts.py", "layers.py"),
    *("family.py", "light_tokenizer.py"),
)
_PACKAGES = ("torch", "transformers", "tokenizers")
_ABANDONED_S = 3600.0  # age of half-written files that nobody goes on with

Stamps = dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class Place:
    """A target's folder.

    Attributes:
        folder: resolved.
        stamps: of its files: size, times of the last change of content and of anything, inode.
        content: hash of its files.
        spec: the target's facts.
    """

    folder: Path
    stamps: Stamps
    content: str
    spec: TargetSpec


def folder() -> Path:
    """Where targets are kept."""
    return cache_dir() / "kept"


def limit_bytes() -> int:
    """Most bytes of all kept targets; 0 keeps none.

    Raises:
        ConfigError: the variable is no number.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_GIB)
    try:
        gib = float(text)
        if not 0 <= gib < float("inf"):
            raise ValueError
    except ValueError as error:
        fix = "Give a number of GiB; 0 keeps none"
        raise ConfigError(f"{LIMIT} is no size", found=text, fix=fix) from error
    return int(gib * 2**30)


def stamp(target: Path) -> Stamps:
    """What tells whether a folder's files have changed, without reading them."""
    found: Stamps = {}
    with suppress(OSError):
        for path in sorted((*target.iterdir(), *target.glob("chat_templates/*.jinja"))):
            if path.suffix in _READ and path.is_file():
                facts = path.stat()
                times = [facts.st_mtime_ns, facts.st_ctime_ns]
                found[str(path.relative_to(target))] = [facts.st_size, *times, facts.st_ino]
    return found


def _content(target: Path, stamps: Stamps) -> str:
    hashes = [f"{name} {sha256_file(target / name)}" for name in stamps]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:24]


def _place_path(target: Path) -> Path:
    return folder() / f"{hashlib.sha256(os.fsencode(target)).hexdigest()[:24]}.json"


def find_place(where: str | Path) -> Place | None:
    """What is known of a target's folder; None where it is none, changed, or was never kept."""
    target = Path(where)
    if not limit_bytes() or not target.is_dir():
        return None
    target = target.resolve()
    with suppress(DataError, OSError, KeyError, TypeError, ValueError, AttributeError):
        known = read_artifact(_place_path(target), SCHEMA)
        if known["folder"] != str(target) or known["made"] != made():
            return None
        stamps = stamp(target)
        place = Place(target, stamps, str(known["content"]), _spec(known["spec"]))
        if stamps == known["stamps"]:
            return place
        if _content(target, stamps) == place.content and stamp(target) == stamps:
            remember(place)  # touched, copied or restored: the same files
            return place
    return None


def new_place(where: str | Path, spec: TargetSpec, stamps: Stamps) -> Place | None:
    """A folder whose target was just loaded; None where its files have changed since `stamps`."""
    target = Path(where).resolve()
    if not limit_bytes() or not stamps:
        return None
    with suppress(OSError):
        content = _content(target, stamps)
        if stamp(target) == stamps:
            return Place(target, stamps, content, spec)
    return None


def remember(place: Place) -> None:
    """Write down what lies in a folder, where that can be written."""
    fields = {
        "folder": str(place.folder),
        "stamps": place.stamps,
        "content": place.content,
        "made": made(),
        "spec": asdict(place.spec),
    }
    with suppress(DSparkError):
        write_artifact(_place_path(place.folder), SCHEMA, fields)


def _spec(fields: dict[str, Any]) -> TargetSpec:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return TargetSpec(**values)


@cache
def made() -> str:
    """Hash of all that decides how weights and tokenizers are kept, but for the target itself."""
    here = Path(__file__).parent
    parts = [__version__, compiling.machine(), compiling.digest()]
    parts += [(here / name).read_text(encoding="utf-8") for name in _SOURCES]
    parts += [metadata.version(name) for name in _PACKAGES]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def file_path(place: Place, dtype: str, weights: str, layout: str) -> Path:
    """Where a target is kept, by what decides its content."""
    name = "-".join((place.content, dtype, weights, layout, made()))
    return folder() / f"{name}{ENDING}"


def mark_used(path: Path) -> None:
    """The files used longest ago make room first."""
    with suppress(OSError):
        os.utime(path)


# ------------------------------------------------------------------------------------------- room


def make_room(path: Path, size: int) -> bool:
    """Remove what nobody can use, and what was used longest ago, until a new file fits.

    Args:
        path: of the new file.
        size: its bytes, about.

    Returns:
        whether it fits, within the limit and on the disk.
    """
    most = limit_bytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    clean(path)
    if size > most:
        return False
    others = sorted(_sizes(), key=lambda found: found[1])
    total = size + sum(found[2] for found in others)
    for other, _, own in others:
        if total <= most:
            break
        with suppress(OSError):
            other.unlink()
        total -= own
    with suppress(OSError):
        return shutil.disk_usage(path.parent).free - size > FREE_BYTES
    return False


def clean(new: Path) -> None:
    """Remove files of targets that are gone, of earlier versions of a new file, and half ones.

    Args:
        new: a file that is about to be written.
    """
    contents = set()
    for known in folder().glob("*.json"):
        try:
            fields = read_artifact(known, SCHEMA)
            if Path(fields["folder"]).is_dir():
                contents.add(fields["content"])
                continue
        except OSError:
            continue
        except (DataError, KeyError, TypeError):
            pass
        _remove(known)
    start = new.name.rpartition("-")[0]
    for path in folder().glob(f"*{ENDING}"):
        older = path.name.startswith(f"{start}-") and path.name != new.name
        if older or path.name.partition("-")[0] not in contents:
            _remove(path)
    for part in folder().glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                _remove(part)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _sizes() -> Iterator[tuple[Path, float, int]]:
    """Kept files with when they were used last, and their bytes."""
    for path in folder().glob(f"*{ENDING}"):
        with suppress(OSError):
            facts = path.stat()
            yield path, facts.st_mtime, facts.st_size


def summary() -> list[dict[str, Any]]:
    """What is kept, for people: folder, type, size; those used last first."""
    names: dict[str, str] = {}
    for known in folder().glob("*.json"):
        with suppress(DataError, KeyError, TypeError):
            fields = read_artifact(known, SCHEMA)
            names[fields["content"]] = str(fields["folder"])
    found = []
    for path, _, size in sorted(_sizes(), key=lambda found: -found[1]):
        content, dtype, weights, layout, version = path.stem.split("-")
        whole = version == made() and kept_file.read_header(path) is not None
        found.append(
            {
                "target": names.get(content, "a folder that is gone"),
                "dtype": dtype,
                "weights": weights,
                "layout": layout,
                "mib": round(size / 2**20, 1),
                "usable": whole,
            }
        )
    return found
