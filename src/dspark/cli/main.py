"""The command line's front door: finds the verb, loads only what it needs, words its errors.

`dspark --help` must stay quick, so a verb's module is imported when that verb runs and not before.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dspark import __version__, signals
from dspark.cli import outputs
from dspark.cli.checks import checked
from dspark.cli.streams import ReaderGone, standard_streams
from dspark.cli.texts import check_arguments
from dspark.errors import ConfigError, DSparkError

# Each verb lives in dspark/cli/VERB.py as a function `command`, or as `app` with sub-verbs.
VERBS = {
    "fetch": "Download the default target and make it ready.",
    "doctor": "Show what this machine offers and what is in place.",
    "demo": "Answer bundled prompts with and without the drafter.",
    "generate": "Answer one prompt.",
    "serve": "Answer over HTTP, compatible with OpenAI's API.",
    "regenerate": "Let the target answer a file of prompts, to train on.",
    "store": "Keep the target's hidden states on disk, for training runs to read.",
    "train": "Train a drafter.",
    "compare": "Put training runs side by side, from what they left on disk.",
    "profile": "Measure what a round costs here, for the adaptive policies.",
    "audit": "Check on this machine that drafts change nothing.",
    "bench": "Measure speed on this machine.",
    "confidence": "Fit a confidence head that sees the draft's distributions as well.",
    "calibrate": "Fit and judge the drafter's confidences against what the target accepts.",
    "eval": "Judge drafters on prompt files: accepted length, acceptance by position, speed.",
    "report": "Tables and figures from result files, as one page.",
}

# What a path or a disk is to blame for, wherever it comes up; any other number is a bug of ours.
_SURROUNDINGS = {errno.EACCES, errno.EDQUOT, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG}
_SURROUNDINGS |= {errno.ENOSPC, errno.EROFS}

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


class _Stopped(Exception):
    """Ctrl-C or SIGTERM; typer has its own ideas about the plain exception."""


class LazyGroup(TyperGroup):
    """Lists verbs from the table above and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb for verb in VERBS if find_spec(f"dspark.cli.{verb}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        # A stand-in with the help line; `resolve_command` puts the real one in its place.
        if cmd_name in self.list_commands(ctx):
            return TyperCommand(cmd_name, help=VERBS[cmd_name])
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verbs = self.list_commands(ctx)
        if args[0] not in verbs and not args[0].startswith("-"):
            near = get_close_matches(args[0], verbs, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(verbs)}"
            ctx.fail(f"no verb {args[0]!r}; {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


def _load(verb: str) -> Any:
    module = import_module(f"dspark.cli.{verb}")
    if hasattr(module, "app"):  # a verb with sub-verbs
        return typer.main.get_command(module.app)
    app = typer.Typer(add_completion=False, context_settings=HELP_OPTIONS)
    app.command(name=verb)(checked(module.command))
    return typer.main.get_command(app)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dspark {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Draft models that let language models answer faster, word for word the same."""


def _say(line: str) -> None:
    print("dspark:", " ".join(line.split()), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: the process's own) and returns its exit code.

    0 is success, 2 an error worded in one line on standard error, 130 Ctrl-C, 143 SIGTERM. Errors
    that are our own bugs keep their traceback.
    """
    warnings.formatwarning = _worded
    if any(option.startswith("error") for option in sys.warnoptions):  # our notes are none
        warnings.filterwarnings("default", category=UserWarning, module=r"dspark\.")
    arguments = list(sys.argv[1:] if argv is None else argv)
    streams = standard_streams(outputs.writes_files)
    with streams as check_output, signals.stop_like_ctrl_c(), outputs.held:
        return _run(arguments, check_output)


def _run(arguments: list[str], check_output: Callable[[], None]) -> int:
    try:
        _check_working_folder()
        check_arguments(arguments)
        code = typer.main.get_command(app).main(arguments, "dspark", standalone_mode=False)
        check_output()
        return code if isinstance(code, int) else 0
    except DSparkError as exc:
        _say(f"error: {exc}")
        return 2
    except typer.TyperException as exc:  # an option or argument that does not exist or fit
        return _usage_error(exc)
    except (KeyboardInterrupt, typer.Abort, _Stopped):
        _say("interrupted; finished work is kept")
        return signals.exit_code()
    except ReaderGone:
        return 0
    except OSError as exc:
        if exc.errno not in _SURROUNDINGS:
            raise
        where = exc.filename or "a file"
        _say(f"error: cannot use {where} (found: {exc.strerror}). Check the path and its disk")
        return 2


def _check_working_folder() -> None:
    """Refuse a folder that somebody deleted: libraries end the process over it.

    Raises:
        ConfigError: it is gone.
    """
    try:
        os.getcwd()
    except OSError as exc:
        raise ConfigError(
            "The working folder is gone", found=exc.strerror, fix="Change to another one"
        ) from exc


_format_warning = warnings.formatwarning
_OWN = str(Path(__file__).resolve().parents[1])


def _worded(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    """Our own warnings in a line, as errors are."""
    if category is UserWarning and filename.startswith(_OWN):
        return f"dspark: note: {message}\n"
    return _format_warning(message, category, filename, lineno, line)


def _usage_error(exc: typer.TyperException) -> int:
    context = getattr(exc, "ctx", None)
    if type(exc).__name__ == "NoArgsIsHelpError":  # its text is the help, already on screen
        print(exc.format_message())
        return exc.exit_code
    where = context.command_path if context is not None else "dspark"
    message = exc.format_message()
    _say(f"error: {message}{'' if message.endswith(('.', '?')) else '.'} Try: {where} --help")
    return 2


if __name__ == "__main__":
    sys.exit(main())
