"""Versions of a pipeline: what differs between them, which is live, and their files."""

from __future__ import annotations

import pytest

import tau as module

MANY = b"".join(b"%d\n" % number for number in range(10_000))


@pytest.mark.parametrize(
    ("before", "now", "diff"),
    [
        (b"a\nb\n", b"a\nb\n", ""),
        (b"a\nb\n", b"a\nc\n", "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"),
        (None, b"a\n", "--- /dev/null\n+++ b/x.py\n@@ -0,0 +1 @@\n+a\n"),
        (b"a\n", None, "--- a/x.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"),
        (None, b"", "/dev/null and b/x.py differ: 0 and 0 bytes\n"),
        (b"a", b"b\n", "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n"),
        (b"\xff", b"\xfe\xff", "a/x.py and b/x.py differ: 1 and 2 bytes\n"),
        (MANY, MANY + b"x", "a/x.py and b/x.py differ: 48,890 and 48,891 bytes\n"),
    ],
)
def test_files_are_compared(before: bytes | None, now: bytes | None, diff: str) -> None:
    files = [{} if content is None else {"x.py": content} for content in (before, now)]
    assert module.compare_sources(*files) == diff


def test_a_long_difference_is_cut_and_says_how_much() -> None:
    diff = module.compare_sources({}, {f"{number}.py": b"x\n" * 3000 for number in range(10)})
    assert 20_000 < len(diff) < 20_100
    assert diff.endswith(" more characters\n")
