"""Where the home and the configuration are found, and which of several values holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import REPOSITORY, Tau, run

import tau as module


def test_the_home_is_found_in_this_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAU_HOME", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/h")
    assert module.find_home(None) == "/h/.local/state/tau"
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert module.find_home(None) == "/x/tau"
    monkeypatch.setenv("STATE_DIRECTORY", "/s")
    assert module.find_home(None) == "/s"
    monkeypatch.setenv("STATE_DIRECTORY", "/s:/s/other")
    assert module.find_home(None) == "/s"
    monkeypatch.setenv("TAU_HOME", "/t")
    assert module.find_home(None) == "/t"
    assert module.find_home("rel") == os.path.abspath("rel")


def test_flag_then_environment_then_file_then_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "tau.toml"
    assert module.read_settings({}, None)["log_level"] == "info"
    config.write_text("[daemon]\nlog_level = 'error'\n[scheduler]\nmax_concurrent = 3\n")
    assert module.read_settings({}, str(config))["log_level"] == "error"
    monkeypatch.setenv("TAU_LOG_LEVEL", "debug")
    assert module.read_settings({}, str(config))["log_level"] == "debug"
    settings = module.read_settings({"log_level": "warning"}, str(config))
    assert (settings["log_level"], settings["max_concurrent"]) == ("warning", 3)


def test_the_key_may_be_a_credential_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials, config = tmp_path / "credentials", tmp_path / "tau.toml"
    credentials.mkdir()
    monkeypatch.delenv("TAU_API_KEY", raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert module.read_settings({}, None)["api_key"] == ""
    (credentials / "tau_api_key").write_text("of systemd\n")
    assert module.read_settings({}, None)["api_key"] == "of systemd"
    assert module.read_secret("tau_api_key", str(tmp_path)) == (None, None)  # it is no pipeline's
    config.write_text("[auth]\napi_key = 'of the file'\n")
    assert module.read_settings({}, str(config))["api_key"] == "of the file"
    (credentials / "tau_api_key").write_bytes(b"\xff")
    with pytest.raises(module.BadRequest, match="tau_api_key"):
        module.read_settings({}, None)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    monkeypatch.chdir(credentials)
    assert module.read_settings({}, None)["api_key"] == ""


def test_the_configuration_is_found_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAU_CONFIG", raising=False)
    usual = tmp_path / "tau.toml"
    usual.touch()
    assert module.find_config(None, str(tmp_path)) == str(usual)
    monkeypatch.setenv("TAU_CONFIG", "/named.toml")
    assert module.find_config(None, str(tmp_path)) == "/named.toml"
    assert module.find_config("/flag.toml", str(tmp_path)) == "/flag.toml"


BAD = {
    "[daemom]\nport = 1": ("unknown key 'daemom'", "did you mean 'daemon'?"),
    "[max_concurrent]\nx = 1": ("unknown section [max_concurrent]", "[scheduler]"),
    "auth = 3": ("[auth]: expected object, given integer 3", "write [auth] and below it what you set of: api_key, "),
    "connections = 3": ("[connections]: expected object, given integer 3", "[connections.shop] url ="),
    "[daemon]\nprot = 1": ("[daemon]: unknown key 'prot'", "did you mean 'port'?"),
    "[connections.shop]\nulr = 'x'": ("[connections.shop]: unknown key 'ulr'", "did you mean 'url'?"),
    "[connections.shop]\nurl = 5": ("[connections.shop].url: expected string", "[connections.shop] url ="),
    "[daemon]\nport = 'x'": ("[daemon].port: expected a whole number", "TCP port"),
    "[daemon]\nport = -1": ("[daemon].port: expected a whole number", "TCP port"),
    "[scheduler]\ntimezone = 'Europe/Londn'": ("there is no time zone", "did you mean 'Europe/London'?"),
    "[auth]\napi_key = 'your-secret-key'\n[daemon]\nport = 1": ("shorter than 32 characters", "token_urlsafe"),
    "[daemon]\nport = 8400.5": ("[daemon].port: expected a whole number", "TCP port"),
    "[daemon]\nport = 99999": ("from 0 to 65,535", "TCP port"),
    "[daemon]\nport = [1]": ("[daemon].port: expected a whole number", "TCP port"),
    "[scheduler]\nmax_concurrent = 0": ("from 1 to 10,000", "runs at the same time"),
    "[daemon]\nport = true": ("[daemon].port: expected a whole number", "TCP port"),
    "[daemon]\nlog_level = 'inof'": ('[daemon].log_level: expected one of "debug"', "did you mean 'info'?"),
    "[daemon]\nhost = 7": ("[daemon].host: expected string", "address"),
    "[daemon": ("tau.toml", "it must be TOML"),
    "[database]\nurl = 'postgresql://x/y'": ("the store is SQLite", "sqlite:///tau.db"),
}


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_configuration_is_refused_at_start(home: Tau, text: str) -> None:
    (home.home / "tau.toml").write_text(text)
    done = run("taud", cwd=home.work, environ=home.environ)
    error = json.loads(done.err.splitlines()[-1])["error"]
    assert (done.exit, error["code"]) == (2, "bad_request")
    assert BAD[text][0] in error["message"]
    assert BAD[text][1] in error["hint"]


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///tau.db", "/h/tau.db"), ("sqlite+aiosqlite:///x/y.db", "/h/x/y.db"), ("sqlite:////a/b.db", "/a/b.db")],
)
def test_the_database_is_relative_to_the_home(url: str, path: str) -> None:
    assert module.database_path(url, "/h") == path


def test_another_database_file_is_used(home: Tau) -> None:
    home.environ["TAU_DATABASE_URL"] = "sqlite:///other.db"
    home.start()
    assert (home.home / "other.db").exists()
    assert not (home.home / "tau.db").exists()


def test_a_home_that_cannot_be_one_is_refused_without_a_traceback(home: Tau) -> None:
    (home.work / "file").touch()
    for place in (home.work / "file", home.work / "file" / "below", Path("/proc/1/nothing")):
        for more in ([], ["--detach"]):
            done = run("taud", "--home", place, *more, cwd=home.work, environ=home.environ)
            assert done.exit in (4, 5), place
            assert "Traceback" not in done.err
            assert json.loads(done.err.splitlines()[-1])["error"]["hint"]


def test_the_sample_configuration_has_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    path = REPOSITORY / "examples" / "tau.example.toml"
    found = module.read_settings({}, str(path))
    assert {row.name: found[row.name] for row in module.SETTINGS} == {row.name: row.default for row in module.SETTINGS}
    assert set(found["connections"]) == {"default", "shop", "api"}
    agent = found["notify"]["agent"]
    assert agent == module.NOTIFY_DEFAULTS | {"url": agent["url"], "secret": "HOOK_KEY"}
    assert set(agent) | {"command"} == set(module.NOTIFY_KEYS)
    assert [module.Recipient(*one).name for one in found["notify"].items()] == ["agent", "chat", "script"]
    heal = found["heal"]
    assert heal == module.HEAL_DEFAULTS | {"command": heal["command"], "env": ["AGENT"]}
    assert set(heal) == set(module.HEAL_KEYS)


CONNECTIONS = [
    ("[connections]\nshop = 'x'\n", '[connections.shop]: expected object, given string "x"'),
    ("connections = 5\n", "[connections]: expected object, given integer 5"),
    ("[connections.shop]\nurl = 5\n", "[connections.shop].url: expected string, given integer 5"),
    ("[connections.shop]\nul = 'y'\n", "[connections.shop]: unknown key 'ul'; did you mean 'url'?"),
    ("[connections.shop]\n", "[connections.shop]: 'url' is missing"),
    ("[connections.shop]\nurl = 'x'\nulr = 'y'\n", "[connections.shop]: unknown key 'ulr'"),
    ("[connections.'no good']\nurl = 'x'\n", "'no good' cannot be a name of [connections] in "),
    ("[connection.shop]\nurl = 'x'\n", "unknown key 'connection'; did you mean 'connections'?"),
]


@pytest.mark.parametrize(("text", "message"), CONNECTIONS)
def test_a_connection_has_a_url_and_nothing_else(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tau.toml").write_text(text)
    with pytest.raises(module.BadRequest) as refused:
        module.read_settings({}, str(tmp_path / "tau.toml"))
    assert message in f"{refused.value}; {refused.value.hint}"
