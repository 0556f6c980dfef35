"""Files that stages hand to each other: written whole, named, versioned, traceable.

Nothing here imports torch.
"""

from dspark.artifacts.decoding import bad_byte
from dspark.artifacts.documents import (
    cpu_count,
    cpu_model,
    provenance,
    read_artifact,
    sha256_file,
    write_artifact,
)
from dspark.artifacts.folders import cache_dir, data_dir, expanded, find_data
from dspark.artifacts.jsonl import append_jsonl, read_jsonl, repair_jsonl
from dspark.artifacts.locks import hold
from dspark.artifacts.writing import (
    atomic_folder,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_parts,
    atomic_write_text,
    check_writable,
    is_device,
    recover_folder,
    write_error,
)

__all__ = [
    "append_jsonl",
    "atomic_folder",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_parts",
    "atomic_write_text",
    "bad_byte",
    "cache_dir",
    "check_writable",
    "cpu_count",
    "cpu_model",
    "data_dir",
    "expanded",
    "find_data",
    "hold",
    "is_device",
    "provenance",
    "read_artifact",
    "read_jsonl",
    "recover_folder",
    "repair_jsonl",
    "sha256_file",
    "write_artifact",
    "write_error",
]
