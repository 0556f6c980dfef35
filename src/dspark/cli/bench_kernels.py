"""`dspark bench kernels`: kernel levels against memory, arithmetic and PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dspark.cli.common import (
    TargetOption,
    ThreadsOption,
    passing_bar,
    positive_numbers,
)
from dspark.cli.outputs import claim
from dspark.errors import ConfigError
from dspark.fetching.known import DEFAULT_TARGET, KNOWN_TARGETS
from dspark.targets.names import resolve_target


def command(
    target: TargetOption = DEFAULT_TARGET,
    levels: Annotated[
        str,
        typer.Option(
            help="Kernel levels, separated by commas; torch is PyTorch's own. All that run here by "
            "default."
        ),
    ] = "",
    dtypes: Annotated[str, typer.Option(help="Number types.")] = "bfloat16,float32",
    rows: Annotated[str, typer.Option(help="Rows of the products.")] = "1,2,4,6,8,12,16,32,64,256",
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each level that count.")] = 7,
    threads: ThreadsOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here (dspark.kernels/1).")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the roofline into this PNG.")
    ] = None,
) -> None:
    """Time a forward's matrix products and attention at every kernel level, in turn.

    Beside them what the machine can do at most: reading memory, and arithmetic on registers.

    The target's weights are not needed, only its shapes. Let nothing else run meanwhile.

    PyTorch takes the best instructions of the processor, whatever level of ours it stands beside:
    a fair comparison with a lower one holds it down too, as in the second example.

    Examples:

        dspark bench kernels --json results/kernels.json --plot kernels.png

        ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 dspark bench kernels --levels avx2,torch
    """
    counts = [int(n) for n in positive_numbers(rows, "--rows", whole=True)]
    if not counts:
        raise ConfigError("There is nothing to measure", fix="Name some --rows")
    claim(json_file, plot)
    from dspark import native
    from dspark.artifacts import provenance, write_artifact
    from dspark.evaluation import kernels
    from dspark.reporting import roofline
    from dspark.targets.hf_loading import load_spec
    from dspark.targets.names import portable_name

    wanted, types = _words(levels) or list(native.usable()), _words(dtypes)
    kernels.check(wanted, types)
    if plot is not None:
        roofline.check()
    if target not in KNOWN_TARGETS:
        resolve_target(target)
    spec = load_spec(target)
    found = _measured(spec, wanted, types, counts, repeats, threads)
    found = {"target": portable_name(target), **found}
    _show(found)
    if json_file is not None:
        record = provenance("dspark bench kernels", {}, [])
        write_artifact(json_file, kernels.SCHEMA, found, record)
    if plot is not None:
        roofline.draw(found, plot)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))


def _measured(
    spec: Any,
    levels: list[str],
    dtypes: list[str],
    rows: list[int],
    repeats: int,
    threads: int | None,
) -> dict[str, Any]:
    """What `evaluation.kernels.measure` finds, behind a bar."""
    import torch

    from dspark.evaluation import kernels

    if threads:
        torch.set_num_threads(threads)
    each = repeats + 1
    with passing_bar() as bar:
        task = bar.add_task("laying weights out", total=len(dtypes) * each)

        def show(dtype: str, done: int) -> None:
            at = dtypes.index(dtype) * each + done
            bar.update(task, completed=at, description=f"{dtype}, repeat {done}/{each}")

        return kernels.measure(spec, levels, dtypes, rows, repeats, show)


def _show(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    for dtype in dict.fromkeys(row["dtype"] for row in found["products"]):
        title = escape(f"{found['target']}, {dtype}, {found['threads']} threads")
        console.print(_products(found, dtype, f"Matrix products of a forward\n{title}"))
        console.print(_attention(found, dtype, f"Attention of a forward\n{title}"))
    console.print(f"reading memory: {found['read_gb_s']:.1f} GB/s")
    for peak in found["peaks"]:
        console.print(f"arithmetic, {peak['level']} {peak['dtype']}: {peak['gflop_s']:.0f} GFLOP/s")
    for line in found["summary"]:
        console.print(
            f"{'yes' if line['met'] else 'no':<3} {line['level']} {line['dtype']}: "
            f"{line['what']} {line['value']:.2f}, asked {line['asked']}",
            markup=False,
            soft_wrap=True,
        )


def _products(found: dict[str, Any], dtype: str, title: str) -> Table:
    headings = ("GB/s", "memory", "GFLOP/s", "peak", "× torch")
    table = _table(title, ("rows",), headings)
    for row in _ordered(found["products"], dtype, "rows"):
        table.add_row(
            f"{row['rows']}",
            row["level"],
            f"{row['ms']:.2f}",
            f"{row['gb_s']:.1f}",
            _form(row["memory"], ".0%"),
            f"{row['gflop_s']:.0f}",
            _form(row["arithmetic"], ".0%"),
            _form(row["of_torch"], ".2f"),
            end_section=row["level"] == found["levels"][-1],
        )
    return table


def _attention(found: dict[str, Any], dtype: str, title: str) -> Table:
    table = _table(title, ("positions", "rows"), ("× torch",))
    for row in _ordered(found["attention"], dtype, "positions", "rows"):
        table.add_row(
            f"{row['positions']:,d}",
            f"{row['rows']}",
            row["level"],
            f"{row['ms']:.2f}",
            _form(row["of_torch"], ".2f"),
            end_section=row["level"] == found["levels"][-1],
        )
    return table


def _table(title: str, sizes: tuple[str, ...], rates: tuple[str, ...]) -> Table:
    table = Table(title=title)
    for heading in (*sizes, "level", "ms", *rates):
        table.add_column(heading, justify="left" if heading == "level" else "right", no_wrap=True)
    return table


def _ordered(rows: list[dict[str, Any]], dtype: str, *sizes: str) -> list[dict[str, Any]]:
    """Those of one type, level by level at each size."""
    own = [row for row in rows if row["dtype"] == dtype]
    return sorted(own, key=lambda row: [row[size] for size in sizes])


def _form(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
