"""Two hosts on one machine: network namespaces with a cable between them and names of their own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

NAMES = ("node-a", "node-b")
_SET_UP = """
set -e
printf '127.0.0.1 localhost\\n10.99.0.1 node-a\\n10.99.0.2 node-b\\n' > {folder}/hosts
mount --bind {folder}/hosts /etc/hosts
unshare --net --uts sh -c 'hostname node-a && ip link set lo up && touch {folder}/a && exec sleep 3600' & a=$!
unshare --net --uts sh -c 'hostname node-b && ip link set lo up && touch {folder}/b && exec sleep 3600' & b=$!
while ! [ -e {folder}/a ] || ! [ -e {folder}/b ]; do sleep 0.05; done
ip link add one type veth peer name two
ip link set one netns $a name eth0
ip link set two netns $b name eth0
nsenter --target $a --net sh -c 'ip address add 10.99.0.1/24 dev eth0 && ip link set eth0 up'
nsenter --target $b --net sh -c 'ip address add 10.99.0.2/24 dev eth0 && ip link set eth0 up'
echo $a $b
wait
"""
_PRIVATE = ("unshare", "--user", "--map-root-user", "--net", "--uts", "--mount")


class Hosts:
    """``node-a`` and ``node-b``; each reaches the other by its name."""

    def __init__(self, processes: Sequence[int]) -> None:
        self._inside = dict(zip(NAMES, processes, strict=True))
        self._started: list[subprocess.Popen[str]] = []

    def start(
        self, name: str, command: str, log: Path, folder: Path, **variables: str
    ) -> subprocess.Popen[str]:
        """Runs shell commands on a host, in ``folder``; the last of them is the process that is returned."""
        *first, last = command.splitlines()
        script = "\n".join([f"cd {folder}", *first, f"exec {last}"])
        enter = ["nsenter", "--target", str(self._inside[name]), "--user", "--net", "--uts", "--mount"]
        with log.open("a") as output:
            process = subprocess.Popen(
                [*enter, "--preserve-credentials", "sh", "-c", script],
                env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def cut(self) -> None:
        """Pulls the cable."""
        enter = [
            "nsenter",
            "--target",
            str(self._inside["node-b"]),
            "--user",
            "--net",
            "--preserve-credentials",
        ]
        subprocess.run([*enter, "ip", "link", "set", "eth0", "down"], check=True)

    def end(self) -> None:
        """Ends whatever still runs on a host."""
        for process in self._started:
            kill_all(process)


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kills a process with all that it has started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process.pid]
    for number in found:
        found += [child for child, parent in parents.items() if parent == number]
    for number in found:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()


def why_not() -> str:
    """Why this machine cannot have such hosts; "" where it can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"two hosts on one machine need {', '.join(missing)} (util-linux, iproute2)"
    trial = [*_PRIVATE, "sh", "-c", "ip link add one type veth peer name two && unshare --net --uts true"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        return f"this machine does not allow network namespaces: {done.stderr.strip().splitlines()[-1:]}"
    return ""


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """The hosts, as long as the context lasts."""
    keeper = subprocess.Popen(
        [*_PRIVATE, "sh", "-c", _SET_UP.format(folder=folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdout is not None
    hosts = Hosts([int(x) for x in keeper.stdout.readline().split()])
    try:
        yield hosts
    finally:
        hosts.end()
        kill_all(keeper)
        keeper.stdout.close()
