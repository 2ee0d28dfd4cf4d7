"""What lies in the home is not believed: any kind of file, in any place of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import tau as module


def listening(path: Path) -> None:
    """A socket, which nobody serves."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


#: Kind of a file → what makes one.
KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "directory": lambda path: (path.mkdir(), (path / "inside").touch()),
    "link to a file": lambda path: path.symlink_to(__file__),
    "link to nowhere": lambda path: path.symlink_to("/nonexistent/there"),
    "link to a fifo": lambda path: (os.mkfifo(f"{path}.fifo"), path.symlink_to(f"{path}.fifo")),
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": listening,
    "unreadable": lambda path: (path.write_text("x"), path.chmod(0)),
    "empty": Path.touch,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\0"),
}
#: Those that are regular files, which a user who may read everything can read.
REGULAR = ("unreadable", "empty", "not UTF-8")


@pytest.fixture(params=KINDS)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of each kind."""
    path = tmp_path / "odd"
    KINDS[request.param](path)
    return path


def test_only_a_regular_file_is_read_and_nothing_is_waited_for(odd: Path) -> None:
    regular = odd.is_file() and not odd.is_symlink() and os.access(odd, os.R_OK)
    content = odd.read_bytes() if regular else None
    assert module.read_bytes(str(odd)) == content
    assert module.peek(str(odd)) == (content or b"").decode("utf-8", "replace")
    lines, position, more = module.read_lines(str(odd), 0, final=True)
    assert (b"\n".join(lines), position, more) == (content or b"", len(content or b""), False)
    position_of = {"journal": module.FREED_BYTES + 1}
    module.free_blocks(str(odd), position_of, "journal")


def test_a_file_that_its_user_names_may_be_linked_but_not_block(odd: Path) -> None:
    try:
        assert module.read_text(str(odd), "ls -l") == odd.read_text()
    except module.BadRequest as refused:
        assert not odd.is_file() or not os.access(odd, os.R_OK) or odd.read_bytes()[:1] == b"\xff"
        assert str(odd) in str(refused)  # noqa: PT017


def test_a_file_is_read_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    assert module.read_bytes(str(path), 1_000_000) == b"x" * 1_000_000
    assert module.read_bytes(str(path), 999_999) is None
    with path.open("ab") as file:
        file.truncate(2 * module.RECORD_BYTES_MAX + 5)  # one line without an end
    sizes, at, more = [], 0, True
    while more:
        lines, at, more = module.read_lines(str(path), at, final=True)
        sizes += map(len, lines)
    assert sum(sizes) == 2 * module.RECORD_BYTES_MAX + 5
    assert max(sizes) <= module.RECORD_BYTES_MAX
    with pytest.raises(module.BadRequest, match="more than"):
        module.read_text(str(path), "")
