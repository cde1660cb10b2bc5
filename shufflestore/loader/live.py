"""A line on stderr that says how a loader does while it is iterated over."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TextIO

from shufflestore.loader.metrics import Stats
from shufflestore.loader.telemetry import Meter

if TYPE_CHECKING:
    import rich.live

__all__ = ["Live"]

_TERMINAL_SECONDS: Final = 0.5
_TEXT_SECONDS: Final = 10.0
"""Between two lines of a log."""
_WINDOW_SECONDS: Final = 10.0
"""A line on a terminal is about the last 10 to 20 seconds."""


class Live:
    """A line on stderr that says how a loader does, as `str(stats)`, while it is iterated over.

    On a terminal one line is kept up to date, at most twice a second, and tells of the last 10 to 20 seconds; what the
    program prints appears above it. Elsewhere a line is written at most every 10 seconds and tells of the time since
    the one before. `close` writes the figures of the whole run. Only rank 0 shows anything.

    No thread and no timer: a batch that is delivered when a line is due writes it, in about a millisecond. An output
    that fails (a pipe that nobody reads) ends the line, not the training loop.
    """

    def __init__(self, meter: Meter, file: TextIO | None = None) -> None:
        """Begin to show.

        Args:
            meter: Of the loader. It has one live line, the newest.
            file: Instead of stderr.
        """
        self._meter, self._file = meter, sys.stderr if file is None else file
        self._from = self._next_from = meter.stats()
        """Figures at the beginning of the time that a line is about, and of the time that the next ones will be."""
        self._line = _line_on(self._file)
        self._is_open = True
        self._last_rites = weakref.finalize(self, _stop, self._line, os.getpid())
        meter.watch(_TEXT_SECONDS if self._line is None else _TERMINAL_SECONDS, self._show)

    def _show(self) -> None:
        stats = self._meter.stats()
        if stats.rank != 0:
            self._end()
            return
        self._write(stats.since(self._from))
        if self._line is None:
            self._from = stats
        elif stats.since(self._next_from).seconds >= _WINDOW_SECONDS:
            self._from, self._next_from = self._next_from, stats

    def _write(self, stats: Stats) -> None:
        text = f"shufflestore: {stats}"
        try:
            if self._line is None:
                print(text, file=self._file, flush=True)
            else:
                self._line.start()
                self._line.update(_cut(text), refresh=True)
        except (OSError, ValueError):  # ValueError: the file was closed
            self._end()

    def _end(self) -> None:
        self._is_open = False
        self._meter.watch(0, None)
        self._last_rites()

    def close(self) -> None:
        """Write the figures of the whole run, and end. Idempotent."""
        if not self._is_open:
            return
        stats = self._meter.stats()
        if stats.batches and stats.rank == 0:
            self._write(stats)
        if self._is_open:
            self._end()

    def __enter__(self) -> Live:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line_on(file: TextIO) -> rich.live.Live | None:
    """Return a line that can be rewritten, None where the file is no terminal that can do that."""
    if not file.isatty():
        return None
    from rich.console import Console
    from rich.live import Live as Line

    class Steady(Console):
        """Leaves the cursor alone: a program that is killed must not take it along."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    console = Steady(file=file)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    # What is printed goes above the line, unless it goes to another place than the terminal.
    out, err = (stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    return Line(console=console, auto_refresh=False, redirect_stdout=out, redirect_stderr=err)


def _cut(text: str) -> Any:
    """Return a text that takes one line however narrow the terminal is."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")


def _stop(line: rich.live.Live | None, process: int) -> None:
    """Let a line end as it stands. A forked child leaves its parent's alone."""
    if line is not None and process == os.getpid():
        with contextlib.suppress(OSError, ValueError):
            line.stop()
