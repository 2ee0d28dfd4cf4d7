"""Records sessions at a terminal as the pictures of the README: `python tests/record.py` makes them anew.

A real shell, `tau` and daemon in a temporary home; what the terminal shows, and when, becomes an SVG.
"""

from __future__ import annotations

import html
import os
import pty
import select
import struct
import sys
import termios
import textwrap
import time
from collections.abc import Iterator, Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pyte
from conftest import REPOSITORY, make_home, running

#: Size of a character's cell, of the margin, and of the text, in pixels.
CELL, LINE, MARGIN, SIZE = 8.4, 18, 14, 14
COLOURS = {
    "default": "#d5dbe3", "black": "#6b7685", "red": "#ff7b72", "green": "#56d364", "brown": "#e3b341",
    "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#56d4dd", "white": "#ffffff",
}  # fmt: skip
BACKGROUND = "#161b22"
#: Seconds between keys that are typed, after a command's end, and before a recording begins anew.
KEY_S, REST_S, LAST_S = 0.04, 1.2, 6.0
#: Changes that are closer than this (seconds) become one frame.
FRAME_S = 0.06

ORDERS = """
import time
from tau import pipeline

@pipeline(schedule="0 6 * * *")
def orders(ctx):
    with ctx.step("extract") as step:
        rows = [{"id": n, "amount": n % 7} for n in range(4000)]
        for done in range(0, 4001, 100):
            ctx.progress(done, 4000, "orders")
            time.sleep(0.04)
        rows[-1] = {"id": 4000, "amuont": 5}
        step.rows_out = len(rows)
    with ctx.step("sum") as step:
        step.rows_in = len(rows)
        total = sum(row["amount"] for row in rows)
    return {"total": total}
"""
#: Picture → columns, rows, and the commands of its session.
SESSIONS: dict[str, tuple[int, int, list[str]]] = {
    "session.svg": (
        *(92, 32),
        [
            *("tau deploy orders.py", "tau run orders", "sed -i s/amuont/amount/ orders.py"),
            *("tau deploy orders.py", "tau run orders"),
        ],
    ),
    "inspect.svg": (100, 36, ["tau inspect daily_sales --last-run"]),
}

Frame = tuple[float, list[list[tuple[int, str, str, bool]]]]


class Terminal:
    """A shell on a terminal of its own, and what it has shown so far."""

    def __init__(self, columns: int, rows: int, cwd: Path, environ: dict[str, str]) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.ByteStream(self.screen)
        self.frames: list[Frame] = []
        self.skipped = 0.0  # seconds that are left out of the recording
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.chdir(cwd)
            os.execve("/bin/sh", ["sh"], environ | {"PS1": "$ ", "TERM": "xterm-256color", "COLUMNS": str(columns)})
        ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, seconds: float, until: str = "") -> None:
        """Shows what comes in this time, or until the last line is *until*."""
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0 and not (until and self.last_line() == until):
            if select.select([self.end], [], [], min(left, FRAME_S))[0]:
                self.stream.feed(os.read(self.end, 1 << 16))
                self.keep()

    def last_line(self) -> str:
        return self.screen.display[self.screen.cursor.y].rstrip()

    def keep(self) -> None:
        now, picture = time.monotonic() - self.skipped, [*spans(self.screen)]
        if self.frames and now - self.frames[-1][0] < FRAME_S:
            self.frames.pop()
        self.frames.append((now, picture))

    def type(self, command: str) -> None:
        for key in command + "\n":
            os.write(self.end, key.encode())
            self.read(KEY_S)
        self.read(60, until="$")
        self.read(REST_S)

    def close(self) -> None:
        os.write(self.end, b"exit\n")
        os.waitpid(self.pid, 0)
        os.close(self.end)


def spans(screen: Any) -> Iterator[list[tuple[int, str, str, bool]]]:
    """Yields of each line of a screen its texts: column, text, colour, whether it is bold."""
    for row in range(screen.lines):
        line: list[tuple[int, str, str, bool]] = []
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            style = (cell.fg if cell.fg in COLOURS else "default", cell.bold)
            if line and line[-1][2:] == style and cell.data != " ":
                begin, text, *_ = line[-1]
                line[-1] = (begin, text.ljust(column - begin) + cell.data, *style)
            elif cell.data != " ":
                line.append((column, cell.data, *style))
        yield line


def drawn(line: Sequence[tuple[int, str, str, bool]], row: int) -> str:
    """The SVG of a line."""
    texts = []
    for column, text, colour, bold in line:
        about = f' fill="{COLOURS[colour]}"' if colour != "default" else ""
        about += ' font-weight="bold"' if bold else ""
        x, y = MARGIN + column * CELL, MARGIN + (row + 1) * LINE - 5
        texts.append(f'<text x="{x:.1f}" y="{y}" textLength="{len(text) * CELL:.1f}"{about}>{html.escape(text)}</text>')
    return "".join(texts)


def svg(frames: list[Frame], columns: int) -> str:
    """The picture: its last frame if nothing moves, else all, one after the other, again and again."""
    rows = max(number for _, lines in frames for number, line in enumerate(lines) if line) + 1
    width, height = columns * CELL + 2 * MARGIN, rows * LINE + 2 * MARGIN
    begin, total = frames[0][0], frames[-1][0] - frames[0][0] + LAST_S
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="{SIZE}"'
        f' fill="{COLOURS["default"]}" xml:space="preserve">',
        f'<rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>',
    ]
    ends = [*(at for at, _ in frames[1:]), begin + total]
    # A line that stays is drawn once, from the frame in which it appears to the one in which it changes.
    for row in range(rows):
        since = 0
        for number in range(1, len(frames) + 1):
            line = frames[since][1][row]
            if number < len(frames) and frames[number][1][row] == line:
                continue
            if line:
                shown = (frames[since][0] - begin) / total, (ends[number - 1] - begin) / total
                parts.append(f"<g>{moving(*shown, total)}{drawn(line, row)}</g>")
            since = number
    return "\n".join([*parts, "</svg>\n"])


def moving(start: float, end: float, total: float) -> str:
    """What shows a part of the picture between two shares of the recording only."""
    if (start, end) == (0, 1):
        return ""
    times = sorted({0, round(start, 4), round(end, 4), 1} - {1})
    values = ";".join("visible" if round(start, 4) <= at < round(end, 4) else "hidden" for at in times)
    keys = ";".join(f"{at:g}" for at in times)
    return (
        f'<animate attributeName="visibility" dur="{total:.2f}s" calcMode="discrete" repeatCount="indefinite"'
        f' keyTimes="{keys}" values="{values}"/>'
    )


def record(folder: Path, sessions: dict[str, tuple[int, int, list[str]]]) -> None:
    """Makes the pictures of some sessions, one after the other at one daemon."""
    with running(make_home()) as tau:
        tau.write(textwrap.dedent(ORDERS), "orders.py")
        binaries = tau.work / ".bin"
        binaries.mkdir()
        (binaries / "tau").write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tau.py "$@"\n')
        (binaries / "tau").chmod(0o755)
        tau("deploy", REPOSITORY / "examples" / "daily_sales.py")
        tau("run", "daily_sales")
        environ = tau.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
        for name, (columns, rows, commands) in sessions.items():
            terminal = Terminal(columns, rows, tau.work, environ)
            try:
                terminal.read(5, until="$")
                terminal.frames = terminal.frames[-1:]
                for command in commands:
                    terminal.type(command)
            finally:
                terminal.close()
            frames = terminal.frames if len(commands) > 1 else terminal.frames[-1:]
            (folder / name).write_text(svg(frames, columns), encoding="utf-8")


if __name__ == "__main__":
    record(REPOSITORY / "examples", SESSIONS)
