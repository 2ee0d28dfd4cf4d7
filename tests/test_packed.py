"""The cached module has the parts of the daemon and of the run process apart: nothing but time and memory differs."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, REPOSITORY, make_certificate

Script = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of tau.py with the cache that Python makes of it."""
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copy(REPOSITORY / "tau.py", folder)
    py_compile.compile(str(folder / "tau.py"), doraise=True)
    return folder


@pytest.fixture
def start(compiled: Path, tmp_path: Path) -> Script:
    """Starts Python with such a copy of its own."""
    shutil.copytree(compiled, tmp_path, dirs_exist_ok=True)

    def run(code: str, folder: Path = tmp_path, **environ: str) -> subprocess.Popen[str]:
        given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        words = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); import tau\n{code}"]
        environ = given | {"TAU_HOME": str(tmp_path / "home")} | environ
        return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True)

    return run


@pytest.fixture
def script(start: Script) -> Callable[..., str]:
    """What such a Python prints."""

    def run(code: str, **given: Any) -> str:
        with start(code, **given) as process:
            said = process.communicate(timeout=PATIENCE_S)[0].strip()
        assert process.returncode == 0
        return said

    return run


NAMES = ("main", "Client", "deploy", "Mcp", "taud", "PipelineContext", "Dashboard")
LOADED = f"print(*(name for name in {NAMES} if name in vars(tau)))"


def test_what_nobody_asks_for_is_not_loaded(script: Callable[..., str]) -> None:
    assert script(LOADED) == " ".join(NAMES)
    assert script("print(tau.pack())") == "True"
    assert script(LOADED) == ""
    assert script(f"tau.taud; {LOADED}") == "deploy taud"
    assert script(f"tau.main(['help']); {LOADED}").endswith("\nmain Client deploy")
    assert script(f"tau.main(['help', 'api']); {LOADED}").endswith("\nmain Client deploy Mcp")
    assert script(f"from tau import pipeline; {LOADED}") == "PipelineContext"
    assert script(f"from tau import Client; {LOADED}") == "Client deploy"
    assert script(f"tau.prepare_interpreter(); {LOADED}; tau.Client") == "PipelineContext"
    assert script(f"import inspect; inspect.getsource(tau.Dashboard); {LOADED}") == "deploy taud Dashboard"
    assert script("print(hasattr(tau, 'nothing'), hasattr(tau, 'sys'))") == "False True"


TALK = """
tau.prepare_interpreter()
print("_ssl" in sys.modules, "zoneinfo" in sys.modules)
import asyncio

async def talk():
    import ssl

    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=CERT)
    server.load_cert_chain(CERT, KEY)
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server) as listener:
        port = listener.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        writer.write(b"hello\\n")
        print((await reader.readline()).decode().strip())
        writer.close()
        try:
            await asyncio.open_connection("127.0.0.1", port, ssl=True)
        except ssl.SSLCertVerificationError as problem:
            print(type(problem).__name__)

asyncio.run(talk())
"""


def test_a_run_that_speaks_tls_loads_it_itself(script: Callable[..., str], tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    before, said, refused = script(f"CERT, KEY = {str(cert)!r}, {str(key)!r}\n{TALK}").splitlines()
    assert (before, said, refused) == ("False False", "hello", "SSLCertVerificationError")


def test_another_source_makes_the_cache_void(script: Callable[..., str], tmp_path: Path) -> None:
    assert script("print(tau.pack())") == "True"
    (tmp_path / "tau.py").write_bytes((REPOSITORY / "tau.py").read_bytes() + b"\nNEWS = 1\n")
    assert script(f"{LOADED}; print(tau.NEWS)") == f"{' '.join(NAMES)}\n1"


def test_a_copied_cache_says_where_the_copy_is(script: Callable[..., str], tmp_path: Path) -> None:
    assert script("print(tau.pack())") == "True"
    there = tmp_path / "there"
    there.mkdir()
    for name in ("tau.py", "__pycache__"):
        (tmp_path / name).rename(there / name)
    print_places = "print({tau.__file__, tau.main.__code__.co_filename, tau.taud.__code__.co_filename})"
    assert script(f"{LOADED}; {print_places}", folder=there) == f"{ {str(there / 'tau.py')} }"


def test_a_cache_that_may_not_be_written_stays(script: Callable[..., str], tmp_path: Path) -> None:
    script("")
    (cache,) = (tmp_path / "__pycache__").glob("tau.*.pyc")
    before = cache.read_bytes()
    assert script("print(tau.pack())", PYTHONDONTWRITEBYTECODE="1") == "False"
    assert cache.read_bytes() == before
    cache.unlink()
    assert script("print(tau.pack())", PYTHONDONTWRITEBYTECODE="1") == "False"


def test_the_first_start_packs_and_keeps_its_pid(start: Script, script: Callable[..., str]) -> None:
    for _ in range(2):
        with start("sys.argv = ['taud', '--json']; sys.exit(tau.taud())") as daemon:
            try:
                assert daemon.stdout is not None
                assert json.loads(daemon.stdout.readline())["pid"] == daemon.pid
                assert script(LOADED) == ""
            finally:
                daemon.terminate()
        assert daemon.returncode == 0


def test_no_thread_sees_half_a_part(script: Callable[..., str]) -> None:
    script("tau.pack()")
    code = "import threading; seen = []; sys.setswitchinterval(1e-6)\n"
    code += "def look():\n    while 'main' not in vars(tau): pass\n"
    code += "    tau.main; seen.append('shrink' in vars(tau))\n"  # first and last of a part
    code += "threads = [threading.Thread(target=look) for _ in range(4)]\n"
    code += "[t.start() for t in threads]; tau.main; [t.join() for t in threads]; print(*seen)"
    assert script(code) == "True True True True"
