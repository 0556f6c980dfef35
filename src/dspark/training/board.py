"""TensorBoard's view of a run, which the run can do without.

TensorBoard's own writer works in a thread, where a full disk ends in a traceback. Here records go
to the same file by its record format, one after the other.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dspark.artifacts import write_error
from dspark.errors import DataError


class Board:
    """Scalars of a run's records, below `folder`; nothing where tensorboard is not installed.

    Args:
        folder: of the event files.
        warn: receives a line if they cannot be written; the rest is left out then.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self._file: Any = None
        self._records: Any = None
        self._over = False

    def add(self, record: dict[str, Any]) -> None:
        """One record of the trainer: its floating-point fields, and the acceptance of each slot.

        The first one takes the place of what was written from its step on.
        """
        if self._over:
            return
        kind, step = record["kind"], record["step"]
        scalars = {f"{kind}/{k}": v for k, v in record.items() if isinstance(v, float)}
        slots = enumerate(record.get("acceptance", []), 1)
        scalars |= {f"{kind}/slot_{slot}": share for slot, share in slots}
        try:
            if self._file is None:
                self._open(step)
            self._write(step, scalars)
        except ImportError:
            self._over = True
        except OSError as error:
            self._over = True
            self.close()
            self.warn(f"{write_error(self.folder, error, DataError)}; training goes on without it")

    def close(self) -> None:
        """No more records."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _open(self, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = (self.folder / name).open("wb", buffering=0)
        self._records = RecordWriter(self._file)
        self._put(Event(step=step, file_version="brain.Event:2"))
        self._put(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._put(Event(step=step, summary=Summary(value=values)))

    def _put(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
