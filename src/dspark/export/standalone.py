"""Drafters with a reduced vocabulary, made whole for engines that read them without the target.

Our files leave out the target's head; of a reduced vocabulary other engines want its rows in the
drafter's own file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from dspark.artifacts import atomic_folder, cache_dir
from dspark.artifacts.locks import is_lock
from dspark.drafters.checkpoint import CONFIG, WEIGHTS, read_checkpoint
from dspark.errors import CheckpointError, ConfigError

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"


def whole_drafter(folder: Path, target: str) -> Path:
    """A drafter's folder that holds all that other engines ask for.

    It is the one given, unless its vocabulary is reduced and the head's rows are missing: then a
    copy in the cache, made once.

    Args:
        target: folder or Hugging Face id.

    Raises:
        CheckpointError: a damaged drafter, or a target folder without the head's weights.
        ConfigError: the head is needed, but the target is no folder.
    """
    config, tensors = read_checkpoint(folder)
    if not config.draft_vocab_size or HEAD in tensors:
        return folder.absolute()
    if not Path(target).is_dir():
        raise ConfigError(
            "This drafter needs rows of the target's head in its file",
            found=f"{target}, which is not a folder",
            fix=f"Fetch it (hf download {target} --local-dir FOLDER) and give the folder",
        )
    out = export_folder(folder, Path(target)) / "drafter"
    if not (out / WEIGHTS).is_file():
        d2t = tensors["d2t"].long()
        tensors[HEAD] = _head(Path(target))[d2t + torch.arange(len(d2t))].contiguous()
        payload = save(tensors, metadata={"format": "pt"})
        with atomic_folder(out) as stage:
            (stage / CONFIG).write_bytes((folder / CONFIG).read_bytes())
            (stage / WEIGHTS).write_bytes(payload)
    return out


def export_folder(*sources: Path | str | None) -> Path:
    """A folder in the cache for what is made of these models; another once their files change."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(f"{source}\n".encode())
        folder = Path(source or "").absolute()
        if not source or not folder.is_dir():
            continue
        for file in sorted(path for path in folder.iterdir() if not is_lock(path)):
            facts = file.stat()
            digest.update(f"{file}|{facts.st_size}|{facts.st_mtime_ns}\n".encode())
    return cache_dir().absolute() / "export" / digest.hexdigest()[:16]


def _head(target: Path) -> Tensor:
    """The target's output head [V, D]; of tied weights its embedding."""
    for ending in (HEAD, EMBEDDING):
        for file in sorted(target.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no mapping, only looks like one)
                    if key.endswith(ending):
                        found: Tensor = tensors.get_tensor(key)
                        return found
    raise CheckpointError(
        f"There is no output head in {target}",
        found=f"neither {HEAD} nor {EMBEDDING} in its safetensors",
        fix="Give a folder with the target's weights as safetensors",
    )
