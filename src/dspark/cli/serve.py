"""`dspark serve`: the engine behind the API that clients already speak."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from dspark.api.names import AUTO
from dspark.cli.common import (
    DEFAULT_DRAFTER,
    DEFAULT_DTYPE,
    DEFAULT_WEIGHTS,
    DrafterOption,
    DtypeOption,
    PolicyOption,
    SlotsOption,
    TargetOption,
    ThreadsOption,
    VerificationOption,
    WeightsOption,
    serving_packages,
)
from dspark.cli.serve_elsewhere import refuse_strays, serve_elsewhere
from dspark.core import DEFAULT_RULE
from dspark.fetching.known import DEFAULT_TARGET
from dspark.server.settings import KEYS_VARIABLE, Settings, read_api_keys


def command(
    ctx: typer.Context,
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = DEFAULT_DRAFTER,
    policy: PolicyOption = None,
    verification: VerificationOption = DEFAULT_RULE,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is open to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: SlotsOption = 16,
    max_len: Annotated[
        int, typer.Option(min=2, help="Longest text in tokens, prompt included.")
    ] = 2048,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more are refused with 429.")
    ] = Settings.max_queue,
    max_body: Annotated[
        int, typer.Option(min=1, help="Largest request body in bytes.")
    ] = Settings.max_body,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that one request may take.")
    ] = Settings.timeout_s,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running answers get when it is stopped.")
    ] = Settings.grace_s,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"File with one API key a line; also read from {KEYS_VARIABLE}."),
    ] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="/metrics needs no API key.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may call the server; repeatable."),
    ] = None,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Refit the confidences when they drift."),
    ] = False,
    drift_limit: Annotated[
        float, typer.Option(min=0, max=1, help="Mean calibration error that counts as drift.")
    ] = Settings.drift_limit,
    drift_window: Annotated[
        int, typer.Option(min=100, help="Rounds that drift is measured over.")
    ] = Settings.drift_window,
    dtype: DtypeOption = DEFAULT_DTYPE,
    weights: WeightsOption = DEFAULT_WEIGHTS,
    threads: ThreadsOption = None,
    ignore_unknown: Annotated[
        bool,
        typer.Option(
            "--ignore-unknown", help="Pass request fields over that nobody knows; else refuse them."
        ),
    ] = False,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts and answers to the log.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="Serve on another engine: vllm, sglang or llama.cpp.", metavar="NAME"),
    ] = None,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="With --engine: print, do not start.")
    ] = False,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="With --engine: GPUs to spread over, on all nodes together.")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="With --engine: machines.")] = 1,
    node_rank: Annotated[
        int, typer.Option(min=0, help="With --engine: which machine this is, from 0.")
    ] = 0,
    head_address: Annotated[
        str | None,
        typer.Option(help="With --engine: where machines meet, node 0's HOST or HOST:PORT."),
    ] = None,
) -> None:
    """Serve the target over HTTP, compatible with OpenAI's API, with a page at /.

    The policy auto measures this machine before the first request, for some seconds, unless it or
    `dspark profile` did so before. Ctrl-C or SIGTERM stops it; running answers may finish.

    Examples:

        dspark serve

        dspark serve --port 9000 --recalibrate

        dspark serve --host 0.0.0.0 --api-key-file keys.txt --max-queue 64

        dspark serve --engine vllm --tensor-parallel 2 --print-command
    """
    if engine is not None:
        return serve_elsewhere(ctx)
    refuse_strays(ctx)
    keys = read_api_keys(api_key_file)
    with serving_packages():
        from dspark.server.run import Server, bind, url_of
    from dspark.api.llm import LLM
    from dspark.server.app import create_app
    from dspark.targets.names import portable_name

    settings = Settings(
        model=portable_name(target),
        max_queue=max_queue,
        max_body=max_body,
        timeout_s=timeout,
        grace_s=grace,
        api_keys=keys,
        open_metrics=open_metrics,
        cors_origins=tuple(cors_origin or ()),
        ignore_unknown=ignore_unknown,
        log_prompts=log_prompts,
        recalibrate=recalibrate,
        drift_limit=drift_limit,
        drift_window=drift_window,
    )
    with bind(host, port) as listening:
        llm = LLM(
            target,
            drafter=drafter,
            policy=policy or AUTO,
            dtype=dtype,
            weights=weights,
            threads=threads,
            slots=slots,
            max_len=max_len,
            verification=verification,
        )
        if weights != DEFAULT_WEIGHTS:
            precision = llm.target.precision
            _note(f"{settings.model} runs in {precision}; answers are those of its rounding")
        app = create_app(llm.engine, settings, llm.calibration)
        url = url_of(listening)
        if not settings.api_keys and not listening.getsockname()[0].startswith(("127.", "::1")):
            _note("anybody who reaches this address can use the server; --api-key-file limits it")
        _log_to_stderr()
        Server(app, lambda: _ready(url, settings)).run(sockets=[listening])


def _ready(url: str, settings: Settings) -> None:
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    body = f'{{"model": "{settings.model}", "messages": '
    body += '[{"role": "user", "content": "Why is the sky blue?"}]}'
    print(f"serving {settings.model} at {url}; try:")
    print(f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'")
    sys.stdout.flush()


def _note(line: str) -> None:
    print(f"dspark: note: {line}", file=sys.stderr)


def _log_to_stderr() -> None:
    """The server's own lines; of libraries only warnings."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s"
    )
    logging.getLogger("dspark").setLevel(logging.INFO)
