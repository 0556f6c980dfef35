"""What the system costs and withstands: step times, memory floor, HTTP, audits, soaks, profiles.

Every function gives a section's blocks: a picture or tables, or the command that measures them.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspark.reporting import cost_plot, roofline
from dspark.reporting.evidence import COMMANDS
from dspark.reporting.load import Results
from dspark.reporting.page import Block, Missing, Picture, numbered
from dspark.reporting.system_records import (
    Audit,
    Cost,
    Floor,
    Kernels,
    ServeOverhead,
    Share,
    SoakEngine,
    SoakFuzz,
    SoakKills,
    SoakServer,
    Start,
    TrainProfile,
    Weights,
)
from dspark.reporting.tables import NOTHING, Cell, Table, interval, number, texts

SOME = 5  # operations of a profile that are worth a row; the rest is small


def costs(results: Results) -> list[Block]:
    """The staircase of verification, and drafting beside it."""
    blocks = list[Block]()
    for place, (file, record) in enumerate(results.of(Cost), 1):
        caption = (
            f"{file}, {record.key.target}, {record.key.dtype}, {record.key.machine}: time of the "
            f"target's forward by batch tokens, {_ends(record.verify, 'tokens')}; the dashed line "
            f"is its convex envelope, on which the adaptive policies search."
        )
        if record.draft:
            caption += f" Drafting: {_ends(record.draft, 'requests')}."
        blocks.append(Picture(numbered("cost", place), cost_plot.picture(record.table), caption))
    return blocks or [Missing("No cost of a step was measured.", COMMANDS["cost"])]


def _ends(points: Sequence[tuple[int, float]], unit: str) -> str:
    """The first and the last measure in words."""
    (first, quick), (last, slow) = points[0], points[-1]
    return f"{1e3 * quick:.2f} ms for {first:,d} to {1e3 * slow:.2f} ms for {last:,d} {unit}"


def floors(results: Results) -> list[Block]:
    """Plain steps against the time that reading the weights takes, and where the time goes."""
    found = results.of(Floor)
    if not found:
        return [Missing("No memory floor was measured.", COMMANDS["floor"])]
    rows = [
        texts(
            [
                *_origin(results, file),
                record.target,
                record.dtype,
                str(record.threads),
                number(record.weight_mib, ".1f"),
                number(record.read_gb_s, ".1f"),
                number(record.floor_ms),
                number(record.step_ms),
                number(record.ratio),
            ]
        )
        for file, record in found
    ]
    head = ["file", "machine", "target", "dtype", "threads", "weights, MiB", "memory, GB/s"]
    head += ["floor, ms", "step, ms", "step over floor"]
    floor = Table("Plain decoding for one user against the memory floor", head, rows, names=4)
    shares = _shares([(file, record.shares) for file, record in found])
    return [floor, shares] if shares else [floor]


def _shares(some: Sequence[tuple[str, Sequence[Share]]]) -> Table | None:
    """Kinds of work by file; None if no file tells any."""
    names = list(dict.fromkeys(share.name for _, shares in some for share in shares))
    rows = []
    for file, shares in some:
        by_name = {share.name: number(share.share, ".1%") for share in shares}
        rows.append(texts([file, *(by_name.get(name, NOTHING) for name in names)]))
    title = "Where a plain step's processor time goes"
    return Table(title, ["file", *names], rows) if names else None


def kernels(results: Results) -> list[Block]:
    """Rooflines of the kernel levels, and what is asked of each."""
    blocks, rows = list[Block](), []
    for place, (file, record) in enumerate(results.of(Kernels), 1):
        caption = (
            f"{file}, {results.machine(file) or NOTHING}, {record.target}: speed of a forward's "
            f"matrix products at each kernel level, from few rows (left) to many. The thick line "
            f"is what reading memory allows, then what arithmetic on registers allows; thin level "
            f"lines are the arithmetic of lower levels."
        )
        picture = roofline.picture(record)
        blocks.append(Picture(numbered("kernels", place), picture, caption))
        for line in record.summary:
            names = [*_origin(results, file), line.level, line.dtype, line.what]
            met = Cell("yes" if line.met else "no", strong=not line.met)
            rows.append([*texts([*names, line.asked, number(line.value)]), met])
    if rows:
        head = ["file", "machine", "level", "dtype", "what", "asked", "measured", "met"]
        blocks.append(Table("What is asked of the kernels", head, rows, names=6))
    return blocks or [Missing("No kernels were measured.", COMMANDS["kernels"])]


def weights(results: Results) -> list[Block]:
    """Targets with weights of eight bits beside their own: predictions, and speeds."""
    rows, speeds = [], []
    for file, record in results.of(Weights):
        names = [*_origin(results, file), record.target, record.dtype]
        figures = [str(record.tokens)]
        for kind in (record.same, record.int8):
            figures += [number(kind.weights_mib, ".1f"), number(kind.perplexity, ".4f")]
        figures += [number(record.same_choice, ".2%"), number(record.mean_kl, ".5f")]
        rows.append(texts([*names, *figures]))
        for row in record.rows:
            speed = Cell(number(row.tokens_per_s, ".1f"), interval(row.tokens_per_s_ci, ".1f"))
            length = number(row.accepted_length)
            speeds.append([*texts([*names, row.label]), speed, *texts([length])])
    if not rows:
        return [Missing("No weights of eight bits were measured.", COMMANDS["weights"])]
    head = ["file", "machine", "target", "dtype"]
    more = ["tokens", "MiB", "perplexity", "MiB, int8", "perplexity, int8"]
    more += ["likeliest token the same", "mean KL, nats"]
    blocks: list[Block] = [Table("Predictions with both weights", [*head, *more], rows, names=4)]
    if speeds:
        more = ["weights, drafter, policy", "tokens/s", "accepted_length"]
        blocks.append(Table("Speed with both weights", [*head, *more], speeds, names=5))
    return blocks


def overheads(results: Results) -> list[Block]:
    """Throughput behind HTTP against the engine alone."""
    rows = []
    for file, record in results.of(ServeOverhead):
        names = [*_origin(results, file), record.target, record.drafter or NOTHING, record.policy]
        measured = [
            str(record.users),
            number(record.bare.tokens_per_s, ".1f"),
            number(record.served.tokens_per_s, ".1f"),
        ]
        cost = Cell(number(record.overhead, ".1%"), interval(record.overhead_ci, ".1%"))
        busy = [
            number(record.bare.cpu_ms_per_token),
            number(record.served.cpu_ms_per_token),
            number(record.client_cpu_share, ".1%"),
        ]
        rows.append([*texts([*names, *measured]), cost, *texts(busy)])
    head = ["file", "machine", "target", "drafter", "policy", "users", "engine alone, tokens/s"]
    head += ["over HTTP, tokens/s", "overhead", "processor, ms a token, alone", "over HTTP"]
    head += ["clients, share of a core"]
    if not rows:
        return [Missing("No cost of HTTP was measured.", COMMANDS["serve_overhead"])]
    return [Table("The engine alone and behind HTTP", head, rows, names=5)]


def starts(results: Results) -> list[Block]:
    """Seconds until fresh processes are of use."""
    rows = []
    for file, record in results.of(Start):
        names = [*_origin(results, file), record.target, record.drafter, record.dtype]
        for row in record.rows:
            span = (min(row.seconds), max(row.seconds))
            took = Cell(number(row.median_s), interval(span))
            figures = [number(row.first_s)]
            rows.append([*texts([*names, record.weights, row.way, row.what, *figures]), took])
    if not rows:
        return [Missing("No start was timed.", COMMANDS["start"])]
    head = ["file", "machine", "target", "drafter", "dtype", "weights", "start", "until"]
    head += ["first run, s", "median, s, and range"]
    return [Table("Starts of fresh processes", head, rows, names=8)]


def audits(results: Results) -> list[Block]:
    """Verdicts on losslessness, and what each check found."""
    rows = []
    for file, record in results.of(Audit):
        greedy, spread, seeds = record.greedy, record.distribution, record.seeds
        names = [*_origin(results, file), record.target, record.drafter, record.policy]
        checks = [
            Cell(
                greedy.outcome,
                f"{greedy.prompts} prompts, {number(greedy.identical, '.0%')} identical, "
                f"{greedy.beyond_rounding} beyond rounding",
            ),
            Cell(
                spread.outcome,
                f"{spread.tokens:,d} tokens, p = {number(spread.p_value, '.3f')}, "
                f"sees a distance of {number(spread.distance_seen, '.3f')}",
            ),
            Cell(
                seeds.outcome,
                f"{seeds.requests} requests, {number(seeds.identical, '.0%')} identical",
            ),
        ]
        verdict = Cell(record.verdict, strong=record.verdict != "lossless")
        rows.append([*texts([*names, record.dtype]), verdict, *checks])
    if not rows:
        return [Missing("No output was audited.", COMMANDS["audit"])]
    head = ["file", "machine", "target", "drafter", "policy", "dtype", "verdict"]
    head += ["greedy texts", "distribution", "seeds"]
    return [Table("Audits of losslessness", head, rows, names=10)]


def soaks(results: Results) -> list[Block]:
    """Each long run in one row, and the answers of fuzzed endpoints."""
    rows = [
        texts([*_origin(results, file), *told])
        for file, told in (
            *((file, _engine(record)) for file, record in results.of(SoakEngine)),
            *((file, _server(record)) for file, record in results.of(SoakServer)),
            *((file, _kills(record)) for file, record in results.of(SoakKills)),
        )
    ]
    fuzzed = [
        texts(
            [
                *_origin(results, file),
                row.endpoint,
                f"{row.requests:,d}",
                ", ".join(f"{status}: {count:,d}" for status, count in row.statuses.items()),
                number(row.slowest_s, ".3f"),
            ]
        )
        for file, record in results.of(SoakFuzz)
        for row in record.rows
    ]
    blocks = list[Block]()
    if rows:
        head = ["file", "machine", "run", "outcome", "memory grew, MiB"]
        blocks.append(Table("Long runs", head, rows, names=4))
    if fuzzed:
        head = ["file", "machine", "endpoint", "requests", "answers by status", "slowest, s"]
        blocks.append(Table("Endpoints under fuzzing", head, fuzzed, names=3))
    return blocks or [Missing("No long run was made.", COMMANDS["soak"])]


def _engine(record: SoakEngine) -> list[str]:
    ends = ", ".join(f"{why} {count:,d}" for why, count in record.finished.items())
    return [
        f"engine, {record.requests:,d} requests in {record.steps:,d} steps",
        f"ends: {ends}; {record.preemptions:,d} preemptions",
        number(record.growth_mib, ".1f"),
    ]


def _server(record: SoakServer) -> list[str]:
    return [
        f"server, {record.target}, {record.clients} clients, {record.seconds:.0f} s",
        f"{record.equal_texts:,d} of {record.requests:,d} texts equal, {len(record.errors)} "
        f"errors, {number(record.tokens_per_s, '.1f')} tokens/s",
        number(record.growth_mib, ".1f"),
    ]


def _kills(record: SoakKills) -> list[str]:
    return [
        f"{record.kills:,d} clients killed, {record.at_once} at once, {record.seconds:.0f} s",
        f"{record.free_slots} of {record.slots} slots free afterwards, {record.positions_held} "
        f"cache positions held, {len(record.different)} of {record.survivors} other texts differ",
        NOTHING,
    ]


def profiles(results: Results) -> list[Block]:
    """Speed of training steps, and where their time goes."""
    found = results.of(TrainProfile)
    if not found:
        return [Missing("No training step was profiled.", COMMANDS["train_profile"])]
    rows = [
        texts(
            [
                *_origin(results, file),
                str(record.threads),
                number(record.anchors_per_s, ",.0f"),
                number(record.anchors_per_s_first_pass, ",.0f"),
                number(record.peak_gib),
            ]
        )
        for file, record in found
    ]
    head = ["file", "machine", "threads", "anchors/s", "anchors/s, first pass", "peak memory, GiB"]
    blocks: list[Block] = [Table("Training steps", head, rows, names=2)]
    for file, record in found:
        parts = [*record.phases, *record.operations[:SOME]]
        kinds = ["phase"] * len(record.phases) + ["operation"] * SOME
        named = [
            texts([kind, part.name, number(part.ms, ".1f"), number(part.share, ".1%")])
            for kind, part in zip(kinds, parts, strict=False)
        ]
        head = ["", "name", "ms a step", "share"]
        blocks.append(Table(f"Where a training step's time goes, {file}", head, named, names=2))
    return blocks


def _origin(results: Results, file: str) -> list[str]:
    """A file and its machine, which begin every row: figures of two machines are not one's."""
    return [file, results.machine(file) or NOTHING]
