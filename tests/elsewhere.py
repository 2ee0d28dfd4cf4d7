"""Other machines that are this one: an sshd and a Slurm of the tests' own, where they are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ENVIRON, PATIENCE_S, eventually, is_running

#: The interpreter itself, not that of the virtual environment: it has nothing installed.
PYTHON = str(Path(sys.executable).resolve())


def program(name: str) -> str:
    """Where a program is, also those for administrators; skips the test if it is nowhere."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def is_listening(port: int) -> bool:
    """Whether somebody takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ends processes, the last one first."""
    for one in reversed(processes):
        one.terminate()
        try:
            one.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


@contextmanager
def bare() -> Iterator[list[str]]:
    """No other machine, but another environment."""
    # To cut this connection is to kill what would remove the run's directory.
    with tempfile.TemporaryDirectory(prefix="tau-bare-") as folder:
        yield ["env", "-i", f"PATH={os.environ['PATH']}", f"TMPDIR={folder}"]


@contextmanager
def ssh() -> Iterator[list[str]]:
    """The command that leads to an sshd of our own on loopback."""
    server, client, keygen = program("sshd"), program("ssh"), program("ssh-keygen")
    home = Path(tempfile.mkdtemp(prefix="tau-sshd-", dir="/tmp"))
    (port,) = free_ports(1)
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nAuthorizedKeysFile {home}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 100\nLogLevel ERROR\n"
    )
    # What Debian's service makes before it starts, and each sshd wants to see if it is root's: ours may be several.
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with open(home / "log", "wb") as log:
        process = subprocess.Popen([server, "-D", "-e", "-f", home / "config"], stderr=log, env=ENVIRON)
    options = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": home / "known", "IdentitiesOnly": "yes"}
    options |= {"BatchMode": "yes", "LogLevel": "ERROR"}
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        eventually(lambda: is_listening(port))
        yield [client, "-F", "none", "-p", str(port), "-i", str(home / "user"), *words, f"{user}@127.0.0.1"]
    finally:
        end([process])
        shutil.rmtree(home)


SLURM = """
ClusterName=tau
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={name} NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=all Nodes={name} Default=YES State=UP
"""


@contextmanager
def slurm() -> Iterator[list[str]]:
    """The command that has Slurm place a job on its only node, which is here."""
    srun, sinfo = program("srun"), program("sinfo")
    programs = [program(name) for name in ("munged", "slurmctld", "slurmd")]
    home = Path(tempfile.mkdtemp(prefix="tau-slurm-", dir="/tmp"))
    home.chmod(0o755)  # munge wants everybody to reach its socket
    for name in ("state", "spool", "tmp"):
        (home / name).mkdir(mode=0o755)
    key = home / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(64))
    control, node = free_ports(2)
    config = home / "slurm.conf"
    about = {"name": socket.gethostname().partition(".")[0], "user": pwd.getpwuid(os.getuid()).pw_name}
    config.write_text(SLURM.format(**about, control=control, node=node, home=home))
    files = {"socket": "munge.socket", "key-file": key, "log-file": "munge.log", "pid-file": "pid", "seed-file": "seed"}
    munge = ["-F", "--force", *(f"--{option}={home / name}" for option, name in files.items())]
    environ = ENVIRON | {"SLURM_CONF": str(config)}
    running: list[subprocess.Popen[bytes]] = []

    def start(number: int, *words: str) -> None:
        with open(home / f"out{number}", "wb") as out:
            running.append(subprocess.Popen([programs[number], *words], stdout=out, stderr=out, env=environ))

    try:
        start(0, *munge)
        try:
            eventually((home / "munge.socket").exists)
            start(1, "-D", "-c", "-f", str(config))
            start(2, "-D", "-f", str(config))
            asked = [sinfo, "-h", "-o", "%T"]
            eventually(lambda: subprocess.run(asked, env=environ, capture_output=True).stdout.strip() == b"idle")
        except AssertionError:
            said = b"".join((home / f"out{number}").read_bytes()[-300:] for number in range(len(running)))
            pytest.skip(f"Slurm does not start here: {said.decode('utf-8', 'replace')}")
        # Where srun is killed Slurm kills what would remove the run's directory.
        yield ["env", f"SLURM_CONF={config}", f"TMPDIR={home}/tmp", srun, "--quiet"]
    finally:
        eventually(lambda: not steps_in(home))
        end(running)
        shutil.rmtree(home)


def steps_in(home: Path) -> list[int]:
    """The processes that Slurm has for its jobs."""
    mark = f"SLURM_CONF={home}/slurm.conf\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "comm").read_text().startswith("slurmstepd") and mark in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if is_running(pid)]


MACHINES = {"bare": bare, "ssh": ssh, "slurm": slurm}
