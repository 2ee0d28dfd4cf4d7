"""What lies in the home is not believed: any kind of file, in any place of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import PATIENCE_S, THOROUGH, Tau, eventually, is_running, run, served

import tau as module


def listening(path: Path) -> None:
    """A socket, which nobody serves."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


#: Kind of a file → what makes one.
KINDS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "directory": lambda path: (path.mkdir(), (path / "inside").touch()),
    "link to a file": lambda path: (Path(f"{path}.file").write_text("x"), path.symlink_to(f"{path}.file")),
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


def test_a_daemon_whose_home_was_renamed_leaves_the_next_one_alone(home: Tau) -> None:
    home.start()
    home.deploy_it("def it(ctx): return 'old'\n")
    old, moved = home.pid(), home.home.with_name("moved")
    home.home.rename(moved)
    home.home.mkdir()
    home.start()
    home.deploy_it("def it(ctx): return 'new'\n")
    names = {"tau.sock", "tau.lock", "tau.db", "tau.db-wal"}
    before = {name: (home.home / name).stat().st_ino for name in names}
    try:
        os.kill(old, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has noticed by itself
    eventually(lambda: not is_running(old))
    assert {name: (home.home / name).stat().st_ino for name in names} == before
    assert home("run", "it")["result"] == "new"
    home.kill()
    home.start()
    assert home("run", "it")["result"] == "new"
    shutil.rmtree(moved)


def test_a_daemon_whose_home_is_deleted_ends_and_says_so(home: Tau) -> None:
    with served(home, code="tau.LOOK_AFTER_S = 0.05") as daemon:
        shutil.rmtree(home.home)
        assert daemon.wait(PATIENCE_S) == 5
    assert "renamed or deleted" in (home.work / "taud.log").read_text()
    home.home.mkdir()


def test_what_a_killed_fork_server_leaves_to_a_container_is_reaped(home: Tau) -> None:
    """As PID 1 of a container, taud gets the orphans."""
    with served(home, code="tau.LOOK_AFTER_S = 0.05; tau.prctl(tau.PR_SET_CHILD_SUBREAPER, 1)") as daemon:
        home.deploy_held("import subprocess; subprocess.Popen(['sleep', '0.2'])")
        runs = [home.call("run", name="it", wait=False)["run_id"] for _ in range(3)]
        for run_id in runs:
            eventually(lambda run_id=run_id: home.call("inspect", run_id=run_id)["status"] == "running")
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        server = next(row["pid"] for row in home.call("status")["processes"] if row["role"] == "fork server")
        os.kill(server, signal.SIGKILL)
        home.go.touch()
        for run_id in runs:
            assert home.call("wait", run_id=run_id)["status"] in ("success", "lost")
        eventually(lambda: len(children.read_text().split()) == 1)  # the next fork server
        assert home.call("run", name="it")["status"] == "success"


#: Places of a home where a run, a crash or a user may have left something; taud goes on whatever it is.
PLACES = (
    *("runs/0000000000000a.1.journal", "runs/0000000000000a.1.stdout", "runs/odd", "runs/load-x.journal", "more"),
    *("memos/odd", "memos/00000000000000", "memos/caf\udce9", "backups/x.partial", "backups/x.tau", ".tau-x.part"),
    *("backups/.tau-x.part", "tau.db.before-v1", "tau.db.restored", "versions/odd", f"versions/{'a' * 64}.code"),
    *("environments/odd", "environments/0123456789ab.lock", "data/it/odd", "secrets/ODD", "runs/caf\udce9.stdout"),
)
#: Places that taud needs: what cannot be used there is refused at the start, and named.
NEEDED = ("tau.db", "tau.toml", "tau.lock", "runs", "tau.sock")
#: How many homes there are with each kind of file in another place.
TURNS = len(KINDS) if THOROUGH else 3


@pytest.mark.parametrize("turn", range(TURNS))
def test_a_home_with_odd_files_everywhere_serves(home: Tau, turn: int) -> None:
    makers = [*KINDS.values()]
    for number, place in enumerate(PLACES):
        path = home.home / place
        path.parent.mkdir(parents=True, exist_ok=True)
        makers[(number + turn) % len(makers)](path)
    home.start()
    home.deploy_it("def it(ctx):\n    return ctx.memo('m', lambda: 7)\n")
    for _ in range(2):
        assert home.call("run", name="it")["result"] == 7
    assert home.call("prune")["runs"] == 0
    assert home.call("backup")["runs"] == 2
    assert "fail" not in [check["status"] for check in home("doctor")["checks"]]
    home("shutdown")
    home.start()
    assert home.call("run", name="it")["result"] == 7
    log = (home.home / "taud.log").read_text()
    assert "Traceback" not in log
    assert len(log) < 5000


@pytest.mark.parametrize("place", NEEDED)
def test_a_place_that_taud_needs_is_refused_and_named_if_something_else_is_there(home: Tau, place: str) -> None:
    os.mkfifo(home.home / place)
    done = run("taud", "--detach", cwd=home.work, environ=home.environ, timeout=PATIENCE_S)
    (home.home / place).unlink()
    assert (done.exit, done.error["code"]) in ((5, "conflict"), (5, "storage_full"), (2, "bad_request"))
    assert place in done.error["message"]


#: What a run puts in the place of its own files while it runs.
SPOILING = """
import os, shutil, socket
def it(ctx, place: str = "", kind: str = ""):
    if not place:
        return 1
    path = os.path.join(os.environ["TAU_HOME"], place.format(ctx.run_id))
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if kind == "directory":
        os.mkdir(path)
    elif kind == "socket":
        os.chdir(os.path.dirname(path))
        socket.socket(socket.AF_UNIX).bind(os.path.basename(path))
    elif kind:
        os.mkfifo(path if kind == "fifo" else path + "x")
        if kind != "fifo":
            os.symlink(path + kind[0], path)
"""


@pytest.mark.parametrize("place", ["runs/{}.1.journal", "runs/{}.1.stdout", "memos/{}", "memos", "data/it", "versions"])
def test_what_a_run_does_to_its_files_holds_nobody_up(fresh: Tau, place: str) -> None:
    fresh.deploy_it(SPOILING)
    for kind in ("fifo", "directory", "socket", "nowhere", "x: a fifo", ""):
        run = fresh.call("run", name="it", params={"place": place, "kind": kind}, timeout=PATIENCE_S)
        assert run["status"] in ("success", "failed", "lost"), kind
        path = fresh.home / place.format(run["run_id"])
        if "{" not in place and not path.is_dir():
            path.unlink(missing_ok=True)
        assert fresh.call("run", name="it", timeout=PATIENCE_S)["result"] == 1, kind
        fresh.call("prune")
    assert "Traceback" not in (fresh.home / "taud.log").read_text()


#: What a run makes of its own files, and leaves.
DEEP = """
import os, signal
def it(ctx, kind: str = ""):
    path = os.path.join(os.environ["TAU_HOME"], "runs", f"{ctx.run_id}.1.{kind}")
    if kind in ("sparse", "long"):
        os.ftruncate(1, 1 << 43) if kind == "sparse" else os.write(1, b"x" * (3 << 20))
    elif kind:
        if os.path.lexists(path):
            os.unlink(path)
        os.mkdir(path)
        os.chdir(path)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    return 1
"""


def test_deep_folders_and_endless_files_hold_nobody_up(fresh: Tau) -> None:
    fresh.deploy_it(DEEP)
    (server,) = (row["pid"] for row in fresh.call("status")["processes"] if row["role"] == "fork server")
    for kind in ("end", "stdout", "other", "journal", "sparse", "long"):
        run = fresh.call("run", name="it", params={"kind": kind}, timeout=PATIENCE_S)
        assert run["status"] in ("success", "lost", "failed"), kind
        assert fresh.call("run", name="it", timeout=PATIENCE_S)["result"] == 1, kind
    assert fresh.call("status")["task_failures"] == []
    assert server in [row["pid"] for row in fresh.call("status")["processes"]]
    said = fresh.call("logs", name="it", run_id=run["run_id"])["lines"]
    printed = [line for line in said if line["stream"] == "stdout"]
    assert sum(len(line["message"]) * line.get("repeated", 1) for line in printed) == 3 << 20
    fresh.call("namespace_show", name="default")
    fresh("shutdown")
    fresh.start()
    assert [path.name for path in (fresh.home / "runs").iterdir()] == []


def test_a_file_that_goes_while_leftovers_are_looked_for_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left.stdout").touch()
    monkeypatch.setattr(os, "listdir", lambda folder: ["gone.journal", "left.stdout"])
    module.Runner.sweep(SimpleNamespace(live={}, folder=str(tmp_path)))  # type: ignore[arg-type]
    assert not (tmp_path / "left.stdout").exists()


def test_half_a_line_is_not_read_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = module.Process(str(tmp_path), "x", None, 1, {})
    path = tmp_path / "x.journal"
    path.write_bytes(b"y" * (4 << 20))
    assert process.next_lines("journal", 16 << 20) == ([], 0, False)
    read, pread = [0], os.pread

    def counting(file: int, size: int, at: int) -> bytes:
        data = pread(file, size, at)
        read[0] += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    for _ in range(20):
        with path.open("ab") as file:
            file.write(b"y")
        assert process.next_lines("journal", 16 << 20) == ([], 0, False)
    assert read == [20]
    with path.open("ab") as file:
        file.write(b"\nrest")
    lines, end, more = process.next_lines("journal", 16 << 20)
    assert ([len(line) for line in lines], end, more) == ([(4 << 20) + 20], (4 << 20) + 21, False)


def test_lines_are_read_of_an_output_that_was_cut(tmp_path: Path) -> None:
    process = module.Process(str(tmp_path), "x", None, 1, {})
    path = tmp_path / "x.stdout"
    path.write_bytes(b"A" * 50_000)
    assert process.next_lines("stdout", 1 << 20) == ([], 0, False)
    path.write_bytes(b"hello\n" * 10)
    assert process.next_lines("stdout", 1 << 20)[0] == [b"hello"] * 10


def test_an_endless_file_is_read_on_near_its_end(tmp_path: Path) -> None:
    process = module.Process(str(tmp_path), "x", None, 1, {})
    (tmp_path / "x.stdout").write_bytes(b"first\n" * 1000)
    os.truncate(tmp_path / "x.stdout", 1 << 43)
    with (tmp_path / "x.stdout").open("ab") as file:
        file.write(b"\nlast\n")
    limits = {"log_lines": 100, "log_bytes": 5000, "result_bytes": 1000, "memo_bytes": 0}
    assert sum(1 for _ in iter(lambda: process.read(limits, True), False)) < 10
    said = [record["message"] for record in process.unsaved]
    assert said[0] == "first"
    assert "last" in said
    assert said[-1].startswith("bytes of its output and journal that were not read: 8,79")
