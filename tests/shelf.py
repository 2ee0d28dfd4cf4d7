"""A site-packages of a test's own, whose small libraries the runs of a daemon can import."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import REPOSITORY, Tau, eventually, make_home

#: An import that takes as long is worth a process.
WORTH_S = 0.02
#: How long a library may take until it is warm.
PATIENCE = 30.0


class Shelf:
    """The directory, and the daemon whose runs see it."""

    def __init__(self, tau: Tau) -> None:
        self.tau = tau
        self.folder = tau.work / "lib" / "site-packages"
        self.folder.mkdir(parents=True)
        # Libraries are imported when the machine is idle: with so many processors it always is.
        (self.folder / "sitecustomize.py").write_text("import os\nos.cpu_count = lambda: 1000\n")
        tau.environ["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(self.folder)))

    def install(self, name: str, text: str = "", version: str = "1.0") -> None:
        """A library of one module, in place of its older version."""
        for old in self.folder.glob(f"{name}-*.dist-info"):
            shutil.rmtree(old)
        for cache in self.folder.glob(f"__pycache__/{name}.*"):
            cache.unlink()  # what is written in this second would pass for it
        about = self.folder / f"{name}-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "RECORD").write_text(f"{name}.py,,\n")
        path = self.folder / f"{name}.py"
        path.unlink(missing_ok=True)
        path.write_text(f"import time\ntime.sleep({WORTH_S})\nVERSION = {version!r}\n" + textwrap.dedent(text))

    def start(self) -> Shelf:
        self.tau.start()
        return self

    def deploy(self, text: str, name: str = "it.py", *beside: tuple[str, str]) -> Any:
        """Deploys a file, and others that come with it, over the wire."""
        one, *more = ({"path": path, "text": textwrap.dedent(source)} for path, source in [(name, text), *beside])
        return self.tau.call("deploy", files=[one], **({"include": more} if more else {}))

    def run(self, name: str = "it", **params: Any) -> Any:
        """A run's document, when it is over."""
        return self.tau.call("run", name=name, params=params)

    def begin(self, name: str = "it", count: int = 1, **params: Any) -> list[str]:
        """The ids of runs that have been begun."""
        asked = {"name": name, "params": params, "wait": False}
        return [self.tau.call("run", **asked)["run_id"] for _ in range(count)]

    def wait(self, ids: list[str]) -> list[Any]:
        """The documents of runs, when all are over."""
        self.tau.call("wait", run_id=ids)
        return [self.tau.call("inspect", run_id=one) for one in ids]

    def state(self, name: str = "it") -> Any:
        """What `tau show` says of the pipeline's warm process."""
        return self.tau.call("show", name=name)["warm"]

    def becomes(self, *states: str, name: str = "it") -> Any:
        """What it says once it is in one of these states."""
        found: list[Any] = []

        def there() -> bool:
            found[:] = [self.state(name)]
            return found[0]["state"] in (*states, "cold")

        eventually(there, PATIENCE)
        assert found[0]["state"] in states, found
        return found[0]

    def warm(self, name: str = "it", **params: Any) -> Any:
        """A run makes the pipeline warm; what `tau show` says then."""
        run = self.run(name, **params)
        assert run["status"] == "success", run["error"]
        assert how(run) == "cold"
        return self.becomes("warm", name=name)


def strays(tau: Tau) -> set[int]:
    """Processes of this home that belong to nobody: neither the daemon, its fork server, nor a child kept ready."""
    ours = set(tau.processes())
    return {pid for pid in set(tau.remains()) - ours if parent(pid) not in ours}


def parent(pid: int) -> int:
    """The parent of a process; 0 if it has just gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def shelf(config: str = "") -> Iterator[Shelf]:
    """A shelf whose daemon is not started yet; it is stopped afterwards."""
    made = make_home("[daemon]\nstop_grace_s = 0.5\n" + config)
    try:
        yield Shelf(made)
    finally:
        made.stop()
        made.home.parent.rmdir()


def how(run: Any) -> str:
    """How a run's last attempt was started."""
    start = run["resources"]["start"]
    assert isinstance(start, str)
    return start


def logged(tau: Tau, run: Any) -> list[str]:
    """What a run has logged and printed."""
    return [line["message"] for line in tau.call("logs", run_id=run["run_id"])["lines"]]


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        found[int(path.name)] = os.readlink(path)
    return found
