"""`tau env`, `--env`, TAU_ENV: which daemon is meant, which key it is sent, and what becomes of the user's file."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE_S, Tau, eventually, python
from hypothesis import given
from hypothesis import strategies as st
from test_terminal import on_terminal

import tau as module

KEY = "tau_sk_" + "x" * 40


def write_file(home: Tau, text: str, mode: int = 0o600) -> Path:
    """environments.toml of the user of this home."""
    path = home.work / ".config/tau/environments.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def daemon_of(home: Tau, *words: Any, **environ: str) -> tuple[str, str]:
    """What names the daemon that a command would speak to, and its address."""
    found = home(*words, "env", "list", **environ)["daemon"]
    return found["from"], found["host"]


def free_port() -> int:
    """A port on loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


THREE = '[a]\nhost = "tcp://a:1"\n[b]\nhost = "tcp://b:2"\n[c]\nhost = "tcp://c:3"\n'


def test_the_daemon_is_found_in_this_order(home: Tau) -> None:
    write_file(home, THREE)
    assert daemon_of(home) == ("home", f"unix://{home.socket}")
    home("env", "use", "c")
    assert daemon_of(home) == ("tau env use", "tcp://c:3")
    environ = {"TAU_ENV": "b"}
    assert daemon_of(home, **environ) == ("TAU_ENV", "tcp://b:2")
    environ["TAU_HOST"] = "tcp://d:4"
    assert daemon_of(home, **environ) == ("TAU_HOST", "tcp://d:4")
    assert daemon_of(home, "--home", "/h", **environ) == ("--home", "unix:///h/tau.sock")
    assert daemon_of(home, "--env", "a", **environ) == ("--env", "tcp://a:1")
    assert daemon_of(home, "--host", "tcp://e:5", **environ) == ("--host", "tcp://e:5")
    home("env", "use")
    assert daemon_of(home) == ("home", f"unix://{home.socket}")


def test_empty_variables_are_none(home: Tau) -> None:
    assert daemon_of(home, TAU_HOST="", TAU_ENV="") == ("home", f"unix://{home.socket}")


def test_the_file_is_where_xdg_says(home: Tau) -> None:
    where = {"XDG_CONFIG_HOME": str(home.work / "elsewhere")}
    assert home("env", "list")["file"] == str(home.work / ".config/tau/environments.toml")
    home("env", "add", "a", "tcp://a:1", **where)
    assert (home.work / "elsewhere/tau/environments.toml").exists()
    assert home("env", "list")["environments"] == []


def test_a_change_of_an_environment_keeps_its_key(home: Tau) -> None:
    home("env", "add", "prod", "tcp://a:1", "-", stdin=KEY)
    home("env", "add", "prod", "tcp://a:1", "--namespace", "acme")
    text = (home.work / ".config/tau/environments.toml").read_text()
    assert KEY in text
    assert 'namespace = "acme"' in text
    home("env", "add", "prod", "tcp://b:1")
    assert KEY not in (home.work / ".config/tau/environments.toml").read_text()


CONTRADICTIONS = [
    ("--host", "tcp://x:1", "--env", "far"),
    ("--env", "far", "--home", "/h"),
    ("--host", "tcp://x:1", "--home", "/h"),
    ("--host", "unix:///other/tau.sock", "--home", "/h"),
]
AGREEMENTS = [
    ("--host", "https://far.example.com", "--env", "far"),
    ("--env", "near", "--home", "/h"),
    ("--host", "tcp://[::1]:1", "--home", "/h"),
    ("--host", "unix:///h/tau.sock", "--home", "/h"),
]
NEAR_AND_FAR = '[near]\nhost = "http://localhost:1"\n[far]\nhost = "https://far.example.com"\n'


def test_flags_that_contradict_each_other_are_refused(home: Tau) -> None:
    write_file(home, NEAR_AND_FAR)
    for words in CONTRADICTIONS:
        assert "give one of" in home(*words, "status", exit=2)["hint"], words
    for words in AGREEMENTS:
        assert daemon_of(home, *words)[0] == words[0]


@contextmanager
def listeners(count: int) -> Iterator[tuple[list[int], list[tuple[int, str]]]]:
    """Ports on loopback, and (port, key) of every hello that is said there."""
    heard: list[tuple[int, str]] = []
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]

    def serve(server: socket.socket, port: int) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                heard.append((port, json.loads(lines.readline())["params"]["api_key"]))

    threads = [threading.Thread(target=serve, args=pair) for pair in zip(servers, ports, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield ports, heard
    finally:
        for server in servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
        for thread in threads:
            thread.join()


def test_a_key_goes_to_its_own_host_and_to_no_other(home: Tau) -> None:
    (home.home / "key").write_text("key-of-the-home\n")
    (home.work / "key").write_text(" key-in-a-file \n")
    (home.work / "key").chmod(0o600)
    with listeners(2) as ([keyed, bare], heard):
        text = f'[keyed]\nhost = "tcp://127.0.0.1:{keyed}"\napi_key = "key-of-keyed"\n'
        text += f'[bare]\nhost = "tcp://127.0.0.1:{bare}"\n'
        write_file(home, text)
        variable, file = {"TAU_API_KEY": "key-in-a-variable"}, {"TAU_API_KEY_FILE": str(home.work / "key")}
        cases: list[tuple[list[str], dict[str, str], tuple[int, str]]] = [
            (["--env", "keyed"], {}, (keyed, "key-of-keyed")),
            (["--env", "keyed"], variable | file, (keyed, "key-of-keyed")),
            (["--env", "bare"], variable, (bare, "key-in-a-variable")),
            (["--env", "bare"], variable | file, (bare, "key-in-a-file")),
            (["--env", "bare"], {}, (bare, "key-of-the-home")),
            ([], {"TAU_ENV": "keyed"}, (keyed, "key-of-keyed")),
            # An address that was named otherwise has nothing to do with an environment …
            (["--host", f"tcp://127.0.0.1:{bare}"], {"TAU_ENV": "keyed"}, (bare, "key-of-the-home")),
            ([], {"TAU_ENV": "keyed", "TAU_HOST": f"tcp://127.0.0.1:{bare}"}, (bare, "key-of-the-home")),
            # … nor the key of TAU_HOST with another host.
            (["--env", "bare"], variable | {"TAU_HOST": f"tcp://127.0.0.1:{keyed}"}, (bare, "key-of-the-home")),
            ([], variable | {"TAU_HOST": f"tcp://127.0.0.1:{keyed}"}, (keyed, "key-in-a-variable")),
        ]
        for words, environ, expected in cases:
            heard.clear()
            assert home(*words, "undeploy", "x", exit=6, **environ)["code"] == "unavailable"
            assert heard == [expected], (words, environ)


def test_a_file_with_a_key_is_for_its_owner_alone(home: Tau) -> None:
    text = f'[a]\nhost = "tcp://a:1"\napi_key = "{KEY}"\n'
    for mode in (0o640, 0o604, 0o620):
        path = write_file(home, text, mode)
        for words in (["env", "list"], ["--env", "a", "status"], ["env", "add", "b", "tcp://b:1"]):
            error = home(*words, exit=4)
            assert (error["code"], error["hint"]) == ("forbidden", f"chmod 600 {path}")
    write_file(home, THREE, 0o644)
    assert len(home("env", "list")["environments"]) == 3


def test_a_key_is_never_a_word_and_never_printed(home: Tau) -> None:
    refused = home("env", "add", "a", "tcp://a:1", KEY, exit=2)
    assert KEY not in json.dumps(refused)
    assert "stdin" in refused["hint"]
    assert home("env", "add", "a", f"https://{KEY}@a", exit=2)["code"] == "bad_request"
    for stdin in ("", " \n", "two words\n", "schlüssel\n"):
        assert home("env", "add", "a", "tcp://a:1", "-", stdin=stdin, exit=2)["code"] == "bad_request"
    assert home("env", "list")["environments"] == []
    assert home("env", "add", "a", "tcp://a:1", "-", stdin=f"{KEY}\n")["changed"] is True
    path = home.work / ".config/tau/environments.toml"
    assert tomllib.loads(path.read_text()) == {"a": {"host": "tcp://a:1", "api_key": KEY}}
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    home("env", "use", "a")
    assert home("env", "show", "a")["api_key"] == "***"
    for words in (["env", "list"], ["env", "show", "a"], ["status"], ["__complete", "--env", ""]):
        done = home.command(*words, TAU_READ_ONLY="1")
        assert KEY not in done.out + done.err
    assert home("env", "list")["environments"] == [{"name": "a", "host": "tcp://a:1", "in_use": "tau env use"}]


def test_a_person_reads_a_table(home: Tau) -> None:
    write_file(home, '[a]\nhost = "tcp://\x1b[1m"\n'.replace("\x1b", "\\u001b"))
    _, screen = on_terminal(home, "--env", "a", "env", "list", NO_COLOR="1")
    assert screen.splitlines()[:2] == [
        "environments  name  host           in_use",
        "              a     tcp://\\x1b[1m  --env",
    ]
    _, screen = on_terminal(home, "env", "show", "a", NO_COLOR="1")
    assert "\x1b" not in screen


def test_what_was_added_is_changed_chosen_and_removed(home: Tau) -> None:
    assert home("env", "add", "a", "https://a", "--ca-file", "ca.pem")["changed"] is True
    assert home("env", "show", "a") == {
        "name": "a",
        "host": "https://a",
        "ca_file": str(home.work.resolve() / "ca.pem"),
    }
    assert home("env", "add", "a", "https://a", "--ca-file", "ca.pem", "--json")["changed"] is False
    assert home("env", "add", "a", "https://b")["changed"] is True
    assert home("env", "show", "a") == {"name": "a", "host": "https://b"}
    assert home("env", "use", "a")["changed"] is True
    assert home("env", "remove", "a") == {"name": "a", "changed": True}
    assert home("env", "remove", "a") == {"name": "a", "changed": False}
    assert daemon_of(home)[0] == "home"
    assert home("env", "use")["changed"] is False


def test_the_namespace_is_that_of_the_flag_the_variable_or_the_environment(fresh: Tau) -> None:
    for name in ("acme", "beta", "gamma"):
        fresh("namespace", "create", name)
    here = f"unix://{fresh.home}/tau.sock"
    fresh("env", "add", "team", here, "--namespace", "acme")
    assert fresh("env", "show", "team")["namespace"] == "acme"

    def meant(*words: str, **more: str) -> str:
        return str(fresh(*words, "namespace", "show", **more)["name"])

    assert meant() == "default"
    assert meant("--env", "team") == "acme"
    assert meant("--env", "team", TAU_NAMESPACE="beta") == "beta"
    assert meant("--env", "team", "--namespace", "gamma", TAU_NAMESPACE="beta") == "gamma"
    assert fresh("--namespace", "nobody", "namespace", "show", exit=3)["code"] == "not_found"


def test_unknown_environments_are_named_with_the_nearest(home: Tau) -> None:
    write_file(home, '[production]\nhost = "https://a"\n')
    for words in (["--env", "prodution", "status"], ["env", "show", "prodution"], ["env", "use", "prodution"]):
        error = home(*words, exit=3)
        assert (error["code"], error["hint"].split("?")[0]) == ("not_found", "did you mean 'production'")


def test_a_choice_that_is_gone_stops_commands_but_not_those_that_mend_it(home: Tau) -> None:
    write_file(home, THREE)
    home("env", "use", "a")
    write_file(home, "")
    assert "tau env use" in home("status", exit=3)["hint"]
    assert "no environment 'a'" in home("env", "list")["daemon"]["error"]
    home("env", "use")
    assert home("status", exit=6)["code"] == "unavailable"


WRONG = {
    "[a]\nhost = 5": "[a].host: expected string, given integer 5",
    "[a]\napi_key = 'x'": "[a]: 'host' is missing",
    "a = 5": "[a]: expected object, given integer 5",
    "['no good']\nhost = 'x'": "cannot be an environment's name",
    "[a]\nhost = 'x'\napi_kye = 'y'": "unknown key 'api_kye'",
    "[a": "environments.toml",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_refused(home: Tau, text: str) -> None:
    path = write_file(home, text)
    error = home("--env", "a", "status", exit=2)
    assert WRONG[text] in error["message"]
    assert error["hint"]
    path.unlink()
    path.mkdir()
    assert home("--env", "a", "status", exit=2)["code"] == "bad_request"


@pytest.mark.parametrize("host", ["", "ftp://x:1", "tcp://", "nonsense", "https://a b", "https://\x1b[1m"])
def test_an_address_that_is_none_is_not_added(home: Tau, host: str) -> None:
    assert home("env", "add", "a", host, exit=2)["code"] == "bad_request"
    assert home("env", "add", "../a", "tcp://a:1", exit=2)["code"] == "bad_request"


@pytest.mark.parametrize(
    "text", ["a = {host = 'tcp://a:1'}\n", "# mine\na.host = 'tcp://a:1'\n", "[a]\nhost = 'tcp://a:1'"]
)
def test_what_others_wrote_stays_whatever_its_form(home: Tau, text: str) -> None:
    path = write_file(home, text)
    assert home("env", "add", "a", "tcp://a:1")["changed"] is False
    assert path.read_text() == text
    home("env", "add", "b", "tcp://b:1")
    assert path.read_text() == '[a]\nhost = "tcp://a:1"\n\n[b]\nhost = "tcp://b:1"\n'
    home("env", "remove", "a")
    assert path.read_text() == '[b]\nhost = "tcp://b:1"\n'
    home("env", "remove", "b")
    assert not path.exists()


VALUES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(st.dictionaries(st.sampled_from(["host", "ca_file"]), VALUES))
def test_any_value_can_be_written(table: dict[str, str]) -> None:
    assert tomllib.loads(module.toml_of({"a": table})) == {"a": table}


def test_two_at_once_lose_nothing_and_a_link_stays_one(home: Tau) -> None:
    real = home.work / "dotfiles.toml"
    real.touch()
    path = write_file(home, "")
    path.unlink()
    path.symlink_to(real)
    command = [*python("main"), "env", "add"]
    several = [
        subprocess.Popen([*command, f"e{i}", f"tcp://e:{i + 1}"], env=home.environ, stdout=subprocess.DEVNULL)
        for i in range(6)
    ]
    assert [one.wait(PATIENCE_S) for one in several] == [0] * 6
    assert path.is_symlink()
    assert sorted(tomllib.loads(real.read_text())) == [f"e{i}" for i in range(6)]
    assert sorted(one.name for one in real.parent.glob("dotfiles*")) == ["dotfiles.toml"]


def test_what_cannot_be_written_is_told(home: Tau) -> None:
    (home.work / "file").touch()
    for words in (["env", "add", "a", "tcp://a:1"],):
        error = home(*words, exit=4, XDG_CONFIG_HOME=str(home.work / "file"))
        assert (error["code"], "ls -ld" in error["hint"]) == ("forbidden", True)


HELLO = "from tau import pipeline\n@pipeline\ndef far(ctx, n: int = 1):\n    ctx.log('here')\n    return n\n"


def test_every_command_reaches_a_daemon_elsewhere(home: Tau, tmp_path: Path) -> None:
    port = free_port()
    home.start("--port", str(port))
    client = Tau(tmp_path / "client")
    client("env", "add", "far", f"tcp://127.0.0.1:{port}", "-", stdin=(home.home / "key").read_text())
    client.write(HELLO, "far.py")
    assert client("--env", "far", "deploy", "far.py")["changed"] is True
    assert client("check", "far.py", TAU_ENV="far")["ok"] is True
    client("env", "use", "far")
    run = client("run", "far", "-p", "n=7")
    assert (run["status"], run["result"]) == ("success", 7)
    assert client("inspect", "far", "--last-run")["run_id"] == run["run_id"]
    assert [line["message"] for line in client("logs", "far")["lines"]] == ["here"]
    assert client("code", "far")["source"] == HELLO
    assert client.command("run", "far", "--follow").lines[-1]["status"] == "success"
    assert client("retry", run["run_id"])["retry_of"] == run["run_id"]
    for words in ("list", "show far", "runs far", "errors", "status", "why far", "schema", "ticks --every 60"):
        assert client.command(*words.split()).exit == 0, words
    assert client("schedule", "far", "--every", 3600)["kind"] == "interval"
    assert client("undeploy", "far")["changed"] is True
    assert list(client.home.iterdir()) == []
    with module.Client(home=str(home.home)) as python_client:
        assert python_client.call("status", {})["pid"] == home.pid()


def test_python_takes_an_environment_too(home: Tau, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(home, f'[near]\nhost = "unix://{home.socket}"\n')
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home.work / ".config"))
    monkeypatch.delenv("TAU_HOST", raising=False)
    home.start()
    with module.Client(env="near") as client:
        assert client.call("status", {})["pid"] == home.pid()


#: Words that let every operation that is not for reading get as far as it can.
WRITING = {
    "deploy": ["pipelines.py"],
    "check": ["pipelines.py"],
    "schedule": ["x"],
    "backfill": ["x", "--from", "2026-01-01"],
    "retry": ["x"],
    "rollback": ["x"],
    "cancel": ["x"],
    "undeploy": ["x"],
    "run": ["x", "--params", "-"],
    "try": ["pipelines.py", "--like", "x"],
    "claim": ["x"],
    "heal": ["x"],
    "create": ["x", "anything"],
    "key_create": ["x"],
    "key_revoke": ["x"],
    "notify_test": ["x"],
    "notify_retry": ["x"],
}


def test_what_only_reads_may_do_nothing_else(home: Tau) -> None:
    home.start()
    home.write(HELLO)
    for entry in module.OPERATIONS.values():
        words = [*entry.words.split(), *WRITING.get(entry.name, [])]
        if entry.effect != "reads":
            error = home(*words, exit=4, TAU_READ_ONLY="1")
            assert (error["code"], "TAU_READ_ONLY" in error["message"]) == ("forbidden", True)
    for words in (["list"], ["status"], ["schema"], ["ticks", "--every", "60"], ["env", "list"], ["version"]):
        assert home.command(*words, TAU_READ_ONLY="1").exit == 0
    for words in (["add", "a", "tcp://a:1"], ["remove", "a"], ["use"]):
        assert home("env", *words, exit=4, TAU_READ_ONLY="1")["code"] == "forbidden"
    assert home("pause", "--all", TAU_READ_ONLY="0")["changed"] is True
    assert home.command("run", "--help", TAU_READ_ONLY="1").exit == 0


def test_it_is_refused_before_anything_is_connected(home: Tau, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home("pause", "--all", exit=4, TAU_READ_ONLY="1")["code"] == "forbidden"  # there is no daemon
    assert home("run", "x", "--params", "@missing", exit=4, TAU_READ_ONLY="1")["code"] == "forbidden"
    monkeypatch.setenv("TAU_READ_ONLY", "1")
    with module.Client(home=str(home.home)) as client:
        for method in ("run", "shutdown", "unheard_of"):
            with pytest.raises(module.Forbidden):
                client.call(method, {"name": "x", "key": "k"})


def events(home: Tau) -> list[str]:
    """What the daemon of this home has noted so far."""
    db = sqlite3.connect(f"file:{home.home}/tau.db?mode=ro", uri=True)
    found = [kind for (kind,) in db.execute("SELECT type FROM events ORDER BY seq")]
    db.close()
    return found


def test_a_reader_may_try_and_see_the_doctor_without_a_trace_in_the_daemon(home: Tau) -> None:
    home.start()
    home.write(HELLO)
    only = {"TAU_READ_ONLY": "1", "TMPDIR": str(home.work)}
    before = events(home)
    assert home("try", "pipelines.py", **only)["status"] == "success"
    checks = {check["name"]: check for check in home("doctor", **only)["checks"]}
    assert checks["daemon"]["status"] != "fail"
    assert "thrown away" in checks["canary: run"]["found"]
    assert events(home) == before
    eventually(lambda: not list(home.work.glob("tau-try-*")))
