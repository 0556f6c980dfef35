"""Build hook: what a wheel carries beside the package's own files.

The trained drafters that exist: Hatchling's static `force-include` stops the build when a folder
is missing, and a fresh checkout need not have trained anything yet. And the kernels for this kind
of processor, where there is a C++ compiler. An editable install reads `drafters/` from the checkout
and compiles at first use.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ["smollm2-135m"]


class WheelHook(BuildHookInterface):
    """Maps `drafters/TARGET/**` to `dspark/_drafters/TARGET/**` file by file; compiles."""

    _work: TemporaryDirectory[str] | None = None  # of what is compiled, until the wheel is written

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self._add_drafters(build_data)
        if version != "editable":
            self._add_kernels(build_data)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._work is not None:
            self._work.cleanup()

    def _add_drafters(self, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        for target in SHIPPED:
            for file in sorted((root / "drafters" / target).rglob("*")):
                hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
                if file.is_file() and not hidden:
                    inside = file.relative_to(root / "drafters").as_posix()
                    build_data["force_include"][str(file)] = f"dspark/_drafters/{inside}"

    def _add_kernels(self, build_data: dict[str, Any]) -> None:
        """The kernels' library, which makes the wheel one for this platform; or a line why not."""
        compiling = load_compiling(Path(self.root))
        self._work = TemporaryDirectory()
        library = Path(self._work.name) / compiling.shipped().name
        try:
            compiler = compiling.find_compiler()
            if compiler is None:
                raise OSError("there is no C++ compiler")
            levels = compiling.compile_library(compiler, library)
        except (OSError, subprocess.SubprocessError) as error:
            why = compiling.reason(error)
            self.app.display_warning(f"The wheel is for any machine, without kernels: {why}")
            return
        for file in (library, library.with_suffix(compiling.CHECK)):
            build_data["force_include"][str(file)] = f"dspark/native/{file.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"
        self.app.display_info(f"The wheel carries kernels: {', '.join(levels)}")


def platform_tag() -> str:
    """This platform as wheels' names have it."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def load_compiling(root: Path) -> ModuleType:
    """`dspark.native.compiling` alone: what the package needs is not there while it is built."""
    path = root / "src" / "dspark" / "native" / "compiling.py"
    spec = importlib.util.spec_from_file_location("compiling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
