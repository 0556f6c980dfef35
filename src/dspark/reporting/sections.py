"""The page's sections, in the order of the paper's section on experiments."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from dspark.maths.never_worse import LIMITS
from dspark.reporting import (
    pictures,
    runs,
    series,
    serving,
    serving_pictures,
    studies,
    system,
    tables,
)
from dspark.reporting.calibration_records import CalibrationCheck, ConfidenceFit
from dspark.reporting.evidence import COMMANDS, Evidence
from dspark.reporting.load import Source
from dspark.reporting.page import Block, Facts, Missing, Section, numbered
from dspark.reporting.records import Demo, Eval, Load, Peers
from dspark.reporting.series import Line
from dspark.reporting.tables import Table, texts

ABOUT = (
    "accepted_length (τ) is the number of tokens committed a round, the target's own token "
    "included; macro is the mean over domains of the means over their datasets. Intervals are "
    "95 % and come from drawing prompts anew."
)


def sections(evidence: Evidence) -> list[Section]:
    """All sections, those too whose data is missing."""
    return [
        Section("Summary", _summary(evidence)),
        Section("Accepted length", _accepted(evidence)),
        Section("Acceptance by position (Figure 2)", pictures.positions(evidence)),
        Section("Depth (Figure 3)", studies.depth(evidence)),
        Section("Block size and head cost (Figure 4)", studies.block_size(evidence)),
        Section("Confidence threshold (Figure 5)", pictures.thresholds(evidence)),
        Section("Reliability (Figure 6)", _reliability(evidence)),
        Section("Throughput and per-user speed (Figure 7)", _frontiers(evidence)),
        Section("Throughput and budget under load (Figure 8)", _under_load(evidence)),
        Section("Never worse than a fixed choice", _never_worse(evidence)),
        Section("Training budget", studies.budget(evidence)),
        Section("Other studies", studies.others(evidence)),
        Section("Training runs side by side", runs.compared(evidence.results)),
        Section("Speed", _speed(evidence)),
        Section("Peers", _peers(evidence)),
        Section("Cost of a step", system.costs(evidence.results)),
        Section("Memory floor", system.floors(evidence.results)),
        Section("Starts", system.starts(evidence.results)),
        Section("Kernels", system.kernels(evidence.results)),
        Section("Weights of eight bits", system.weights(evidence.results)),
        Section("Cost of HTTP", system.overheads(evidence.results)),
        Section("Losslessness", system.audits(evidence.results)),
        Section("Soak", system.soaks(evidence.results)),
        Section("Training cost", _training(evidence)),
        Section("Training speed", system.profiles(evidence.results)),
        Section("Provenance", _provenance(evidence)),
    ]


def targets(evidence: Evidence) -> list[str]:
    """Names of the targets in evaluations, demos, loads and peers."""
    results = evidence.results
    found = [record.target for _, record in results.of(Eval)]
    found += [record.target for _, record in results.of(Demo)]
    found += [record.target for _, record in results.of(Load)]
    found += [record.target for _, record in results.of(Peers)]
    return list(dict.fromkeys(found))


# ---- the sections that are not one picture --------------------------------------------------


def _summary(evidence: Evidence) -> list[Block]:
    sources, lines = evidence.results.sources, evidence.lines
    made = sorted(source.provenance.made_at for source in sources if source.provenance.made_at)
    rows = [
        ("target", _list(targets(evidence))),
        ("machine", _list(map(_machine, sources))),
        ("made", _list([made[0], made[-1]], " to ") if made else ""),
        ("settings", _list(map(_settings, (e for _, e in evidence.results.of(Eval))))),
        ("drafters", _list(line.drafter for line in series.of_study(lines, None))),
        ("datasets", _datasets(lines)),
        ("temperatures", _list(f"{t:g}" for t in series.temperatures(lines))),
        ("studies", _list(line.study or "main comparison" for line in lines)),
        ("files read", str(len(sources))),
        ("files left out", "; ".join(evidence.results.notes)),
    ]
    known = [texts((name, text)) for name, text in rows if text]
    return [Table("", ["", ""], known, names=2), *_headline(evidence), ABOUT]


def _headline(evidence: Evidence) -> list[Block]:
    """The main comparison in one sentence."""
    main = series.of_study(evidence.lines, None)
    some = evidence.pick(main)
    if not some:
        return [evidence.missing("No main comparison was measured", "main", main)]
    values = "; ".join(
        f"{label} {tables.number(line.accepted_length)}"
        for label, line in zip(series.labels(some), some, strict=True)
    )
    return [f"Macro accepted_length at temperature {some[0].temperature:g}: {values}."]


def _list(items: Iterable[str], joint: str = "; ") -> str:
    """The texts that are not empty, each once."""
    return joint.join(dict.fromkeys(filter(None, items)))


def _settings(record: Eval) -> str:
    return f"{record.dtype}, {record.threads} threads, up to {record.max_new_tokens} new tokens"


def _machine(source: Source) -> str:
    record = source.provenance
    cpu = f"{record.cpu.model}, {record.cpu.count} processors" if record.cpu.model else ""
    return _list([record.device or "", cpu, record.platform if cpu else ""], ", ")


def _datasets(lines: list[Line]) -> str:
    sizes = {row.dataset: row.prompts for line in lines for row in line.rows}
    return "; ".join(
        f"{domain}: " + ", ".join(f"{name} ({sizes[name]} prompts)" for name in names)
        for domain, names in series.datasets(lines).items()
    )


def _accepted(evidence: Evidence) -> list[Block]:
    main = series.of_study(evidence.lines, None)
    if not main:
        return [evidence.missing("No main comparison was measured", "main")]
    blocks = list[Block]()
    for temperature in reversed(series.temperatures(main)):
        some = series.at_temperature(main, temperature)
        title = f"accepted_length at temperature {temperature:g}"
        blocks.append(tables.accepted_lengths(some, title))
        title = f"Gain of dspark in macro accepted_length at temperature {temperature:g}"
        table = tables.gains(some, title)
        what = f"No gain of dspark over another drafter at temperature {temperature:g} is known."
        blocks.append(table or Missing(what, COMMANDS["main"]))
    return [*blocks, "The largest number of a column is bold."]


def _reliability(evidence: Evidence) -> list[Block]:
    found = evidence.results.of(CalibrationCheck)
    if not found:
        return [Missing("No calibration was checked.", COMMANDS["calibration"])]
    blocks = list[Block]()
    for number, (name, check) in enumerate(found, 1):
        file = numbered("reliability", number)
        blocks += [pictures.reliability(name, check, file), tables.calibration(name, check)]
    heads = evidence.results.of(ConfidenceFit)
    return [*blocks, *(tables.confidence_heads(name, fit) for name, fit in heads)]


def _speed(evidence: Evidence) -> list[Block]:
    found = evidence.results.of(Demo)
    if not found:
        return [Missing("No speed was measured.", COMMANDS["demo"])]
    return [tables.demos(evidence.results), tables.demo_domains(found)]


def _frontiers(evidence: Evidence) -> list[Block]:
    blocks = serving_pictures.frontiers(evidence)
    compared = list[Block]()
    for setting, some in serving.load_lines(evidence.results).items():
        if found := serving.against_baseline(some):
            compared.append(tables.over_baseline(found, f"Over MTP-1, {setting}"))
    if not compared:
        return [*blocks, Missing("MTP-1 was not measured under load.", COMMANDS["load_mtp"])]
    about = (
        "Each row is a point of MTP-1's frontier, the best of its drafting policies; between "
        "measured points numbers are interpolated, beyond them they are not known."
    )
    return [*blocks, *compared, about]


def _under_load(evidence: Evidence) -> list[Block]:
    found = serving.load_lines(evidence.results)
    shown = [tables.loads(some, f"Under load, {setting}") for setting, some in found.items()]
    return [*serving_pictures.under_load(evidence), *shown]


def _never_worse(evidence: Evidence) -> list[Block]:
    table = tables.never_worse_table(evidence.results.of(Load))
    if table is None:
        what = "No adaptive policy was measured under load beside fixed ones."
        return [Missing(what, COMMANDS["load"])]
    aims = " and ".join(f"{limit} for {policy}" for policy, limit in LIMITS.items())
    about = (
        "The best fixed choice is picked on every other slice and compared on the rest, both ways "
        f"round; the aim is {aims}, judged by the upper end of the 95 % interval."
    )
    return [table, about]


def _peers(evidence: Evidence) -> list[Block]:
    found = evidence.results.of(Peers)
    blocks = list[Block]()
    for place, (file, record) in enumerate(found, 1):
        blocks += [serving_pictures.peers(record, place, evidence.results.machine(file))]
        blocks.append(tables.peers(file, record))
        blocks += [f"llama.cpp ran {record.llama}."] if record.llama else []
    return blocks or [Missing("No peer was measured.", COMMANDS["peers"])]


def _training(evidence: Evidence) -> list[Block]:
    table = tables.training_cost(evidence.lines)
    what = "No evaluation file tells what a drafter's training took."
    return [table or Missing(what, COMMANDS["main"]), *pictures.training_curves(evidence)]


def _provenance(evidence: Evidence) -> list[Block]:
    sources = _sources(evidence)
    rows = [
        texts(
            [
                source.name,
                source.schema,
                source.provenance.made_at[:10] or tables.NOTHING,
                source.provenance.cpu.model or tables.NOTHING,
                str(source.provenance.cpu.count or tables.NOTHING),
                source.provenance.device or tables.NOTHING,
            ]
        )
        for source in sources
    ]
    head = ["file", "schema", "made", "processor", "count", "device"]
    table = Table("Files read and the machine each was made on", head, rows, names=6)
    left = [f"{note}." for note in evidence.results.notes]
    about = "How every file was made; open one for its command, versions, seeds and inputs."
    return [table, *left, about, *map(_facts, sources)]


def _sources(evidence: Evidence) -> list[Source]:
    return sorted(evidence.results.sources, key=lambda source: source.name)


def _facts(source: Source) -> Facts:
    record = source.provenance
    rows = [
        ("schema", source.schema),
        ("SHA-256", source.sha256),
        ("command", shlex.join(record.argv) or record.command),
        ("made", record.made_at),
        ("machine", _machine(source)),
        ("versions", ", ".join(f"{name} {v}" for name, v in record.versions.items() if v)),
        ("seeds", ", ".join(f"{name} {seed}" for name, seed in record.seeds.items())),
        ("inputs", ", ".join(f"{name} {digest}" for name, digest in record.inputs.items())),
    ]
    return Facts(source.name, [(name, text) for name, text in rows if text])
