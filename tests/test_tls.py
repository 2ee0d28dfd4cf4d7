"""Encrypted ways to the daemon, certificates that come and go, and a real proxy in front."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, free_port, make_certificate, make_home, python, running, started

import tau as module

WAITS = """
from pathlib import Path
import time
from tau import pipeline

@pipeline
def waits(ctx):
    ctx.log("begun")
    while not Path("go").exists():
        time.sleep(0.01)
    ctx.log("ended")
    return 7
"""


@pytest.fixture(scope="module")
def secure() -> Iterator[Tau]:
    """A daemon that speaks TLS."""
    yield from started(make_home("", "tls"))


def test_lines_and_http_both_come_through_tls(secure: Tau) -> None:
    for scheme in ("tls", "https"):
        host = f"{scheme}://127.0.0.1:{secure.port}"
        assert secure("--host", host, "status")["pid"] == secure.pid()
        assert secure("--host", f"{scheme}://localhost:{secure.port}", "status")["pid"] == secure.pid()


def test_the_client_tells_why_there_is_no_tls(secure: Tau, home: Tau, tmp_path: Path) -> None:
    error = secure("list", exit=6, TAU_CA_FILE="")
    assert (error["reason"], error["retryable"]) == ("certificate_refused", False)
    assert "TAU_CA_FILE" in error["hint"]
    cert, _ = make_certificate(tmp_path, "DNS:elsewhere.example")
    assert secure("list", exit=6, TAU_CA_FILE=str(cert))["reason"] == "certificate_refused"
    assert secure("list", exit=2, TAU_CA_FILE="/nowhere")["code"] == "bad_request"
    error = secure("--host", f"tcp://127.0.0.1:{secure.port}", "list", exit=2)  # plain to TLS
    assert (error["message"], error["hint"]) == ("this port speaks TLS", "tls:// or https://")
    error = secure("--host", f"http://127.0.0.1:{secure.port}", "list", exit=6)
    assert (error["reason"], "https://" in error["hint"]) == ("not_a_tau", True)
    port = free_port()
    home.start("--port", str(port))
    for scheme in ("tls", "https"):  # TLS to plain
        assert home("--host", f"{scheme}://127.0.0.1:{port}", "list", exit=6)["reason"] == "no_tls"
    assert secure("list") == home("list")


def test_old_tls_is_refused(secure: Tau) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(secure.environ["TAU_CA_FILE"])
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", secure.port), 10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def shown(made: Tau) -> str:
    """The certificate that is shown just now."""
    return ssl.get_server_certificate(("127.0.0.1", made.port), timeout=PATIENCE_S)


def test_a_renewed_certificate_is_picked_up_without_a_restart() -> None:
    with running(make_home("", "tls")) as made:
        first, pid = shown(made), made.pid()
        with module.Client(f"unix://{made.socket}") as client:
            client.call("list", {})
            make_certificate(made.home)
            os.kill(pid, signal.SIGHUP)
            eventually(lambda made=made, first=first: shown(made) != first)
            assert client.call("status", {})["pid"] == pid
        (made.home / "cert.pem").write_text("nothing")
        os.kill(pid, signal.SIGHUP)
        eventually(lambda made=made: any("cert" in one for one in made.call("status")["warnings"]))
        assert shown(made) != first  # the one that it has serves on


def test_a_certificate_of_the_client_may_be_demanded(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    made = make_home("[daemon]\nstop_grace_s = 1.0\n", "tls")
    config = made.home / "tau.toml"
    config.write_text(config.read_text() + f'tls_client_ca = "{cert}"\n')
    with running(made):
        for scheme in ("tls", "https"):
            refused = made("--host", f"{scheme}://127.0.0.1:{made.port}", "list", exit=6)
            assert refused["code"] == "unavailable"
            assert "TAU_CERT_FILE" in refused["hint"]
        assert made("list", TAU_CERT_FILE=str(cert), TAU_CERT_KEY_FILE=str(key))["total"] == 0


@pytest.mark.parametrize("broken", ["nothing", "no key", "not there"])
def test_a_certificate_that_is_none_is_refused_at_start(home: Tau, tmp_path: Path, broken: str) -> None:
    cert, key = make_certificate(tmp_path)
    if broken == "nothing":
        cert.write_text("nothing")
    elif broken == "no key":
        key.write_text("")
    else:
        cert.unlink()
    (home.home / "tau.toml").write_text(f'[daemon]\nport = {free_port()}\ntls_cert = "{cert}"\ntls_key = "{key}"\n')
    with pytest.raises(AssertionError, match="tls_cert"):
        home.start()


# Through a real proxy.

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    client_max_body_size 16m;
    location /tau/ {{ proxy_pass http://127.0.0.1:{behind}/; {extra} }}
  }}
}}
"""


@contextmanager
def nginx(made: Tau, folder: Path, extra: str) -> Iterator[str]:
    """A proxy that speaks TLS in front of a daemon: its address."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    cert, key = make_certificate(folder)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port, cert=cert, key=key, behind=made.port, extra=extra))
    proxy = subprocess.Popen([program, "-e", str(folder / "error.log"), "-c", str(config)], stderr=subprocess.PIPE)
    try:
        eventually(lambda: proxy.poll() is not None or is_open(port))
        assert proxy.poll() is None, proxy.stderr and proxy.stderr.read()
        yield f"https://127.0.0.1:{port}/tau"
    finally:
        proxy.terminate()
        proxy.wait(PATIENCE_S)
        assert proxy.stderr is not None
        proxy.stderr.close()


def is_open(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def stream(made: Tau, go: Path, ways: dict[str, str], *words: str) -> list[Any]:
    """What a following command prints; the run that it follows may go on only when its first line has come."""
    command = subprocess.Popen(
        [*python("main"), *words], env=made.environ | ways, cwd=made.work, stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    with command.stdout as lines:
        found = []
        for line in lines:
            found.append(json.loads(line))
            if found[-1].get("message") == "begun":
                go.touch()
    assert command.wait(PATIENCE_S) == 0
    go.unlink()
    return found


@pytest.mark.parametrize("extra", ["", "proxy_http_version 1.1; proxy_set_header Connection '';"])
def test_everything_works_through_nginx(tmp_path: Path, extra: str) -> None:
    with running(make_home("", "http")) as made, nginx(made, tmp_path, extra) as host:
        ways = {"TAU_HOST": host, "TAU_CA_FILE": str(tmp_path / "cert.pem")}
        ways["TAU_API_KEY"] = made("--home", made.home, "key", "create", "proxy")["key"]
        assert made("deploy", made.write(WAITS), **ways)["changed"] is True
        go = made.home / "data/waits/go"
        *events, document = stream(made, go, ways, "run", "waits", "--follow")
        assert [one["message"] for one in events if one["type"] == "log"] == ["begun", "ended"]
        assert (document["status"], document["result"]) == ("success", 7)
        run_id = made("run", "waits", "--detach", **ways)["run_id"]
        lines = stream(made, go, ways, "logs", run_id, "--follow")
        assert [one["message"] for one in lines] == ["begun", "ended"]
        assert made("inspect", run_id, **ways)["result"] == 7
        assert made("list", exit=4, **ways | {"TAU_API_KEY": "wrong" * 10})["code"] == "forbidden"
        made("--home", made.home, "shutdown")
        assert made("undeploy", "waits", exit=6, **ways)["reason"] == "gateway"
        made.start()
        assert [one["name"] for one in made("list", **ways)["pipelines"]] == ["waits"]
