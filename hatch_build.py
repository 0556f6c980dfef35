"""Build hook: puts the trained drafters that exist into the wheel.

Hatchling's static `force-include` stops the build when a folder is missing, and a fresh checkout
need not have trained anything yet. An editable install reads `drafters/` from the checkout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ["smollm2-135m"]


class DrafterHook(BuildHookInterface):
    """Maps `drafters/TARGET/**` to `dspark/_drafters/TARGET/**` file by file."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for target in SHIPPED:
            for file in sorted((root / "drafters" / target).rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
                if file.is_file() and not hidden:
                    inside = file.relative_to(root / "drafters").as_posix()
                    build_data["force_include"][str(file)] = f"dspark/_drafters/{inside}"
