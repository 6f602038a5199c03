"""Shows what raftos 0.2.6 does, check by check, with its own code.

    python -m venv venv && venv/bin/pip install msgpack
    venv/bin/pip download raftos==0.2.6 --no-deps --no-binary :all: && python -m zipfile -e raftos-0.2.6.zip .
    venv/bin/python reproduce.py raftos-0.2.6

The package is copied to a temporary directory. `register` runs on the copy as it is; everything else on a copy that is
patched so that it starts at all on CPython 3.10 or newer (see PATCHES: they touch no vote, append or commit handler),
and, but for `read-back`, so that it can read its own log (READ_PATCH).
All ports are on loopback, all waits are bounded; it takes one or two minutes. strace is used where it is installed.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# (file, what it says, what starts today): arguments that Python and msgpack have dropped, and a renamed exception.
PATCHES = [
    ("server.py", "asyncio.Queue(loop=self.loop)", "asyncio.Queue()"),
    ("server.py", "asyncio.Task(\n", "asyncio.wait_for(\n"),
    ("server.py", "local_addr=address),\n            loop=self.loop\n", "local_addr=address),\n            None\n"),
    ("serializers.py", "use_list=True, encoding='utf-8'", "use_list=True, raw=False"),
    ("replicator.py", "with await self.lock", "async with self.lock"),
    ("state.py", "asyncio.futures.InvalidStateError", "asyncio.InvalidStateError"),
]  # fmt: skip
# The newline that the log puts behind each entry is left in when it is read back, which msgpack refuses.
READ_PATCH = ("storage.py", "unpack(entry) for", "unpack(entry[:-1]) for")
WRITE_TIMEOUT_S = 3.0
Reply = dict[str, Any]


def copy(source: Path, to: Path, patches: list[tuple[str, str, str]]) -> None:
    """Copy the package `raftos` of an unpacked release into `to`."""
    shutil.copytree(source / "raftos", to / "raftos")
    for name, old, new in patches:
        path = to / "raftos" / name
        text = path.read_text()
        if old not in text:
            raise SystemExit(f"{path}: not the text of 0.2.6: {old!r}")
        path.write_text(text.replace(old, new))
    if patches:  # Future(loop=...) and ensure_future(loop=...) still exist; only encryption is left out
        (to / "raftos" / "cryptors.py").write_text(_PLAIN_CRYPTOR)


_PLAIN_CRYPTOR = """class DummyCryptor:
    def __init__(self, config):
        self.config = config

    def encrypt(self, data):
        return data

    def decrypt(self, data):
        return data


default_cryptor = DummyCryptor
"""


# In one process: a State of raftos between a fake server and messages of ours.


class Server:
    """Stands in for raftos.server.Node: remembers what the state sends."""

    def __init__(self, port: int, others: int) -> None:
        self.host, self.port = "127.0.0.1", port
        self.cluster = {("127.0.0.1", port + 1 + n) for n in range(others)}
        self.cluster_count = len(self.cluster)
        self.loop = asyncio.get_running_loop()
        self.sent: list[Reply] = []

    async def send(self, data: Reply, destination: object) -> None:
        """Remember one message."""
        self.sent.append(data)

    def broadcast(self, data: Reply) -> None:
        """Remember one message to all."""
        self.sent.append(data)


def make_state(port: int, others: int = 2) -> Any:
    """A follower of raftos with `others` peers. Call it inside a loop."""
    from raftos.state import State  # type: ignore[import-not-found]

    state = State(Server(port, others))
    state.start()
    return state


def append(index: int, term: int, commit: int, value: int, entries_term: int | None = None) -> Reply:
    """An append of one entry at `index`."""
    return {
        "type": "append_entries", "term": term, "leader_id": "127.0.0.1:1", "commit_index": commit, "request_id": 1,
        "entries": [{"term": entries_term or term, "command": {"k": value}}], "prev_log_index": index - 1,
        "prev_log_term": term if index > 1 else 0, "sender": ("127.0.0.1", 1),
    }  # fmt: skip


async def votes() -> str:
    """How many votes make a leader of four."""
    state = make_state(21000, others=3)
    state.to_candidate()
    state.request_handler(
        {
            "type": "request_vote_response",
            "term": state.storage.term,
            "vote_granted": True,
            "sender": ("127.0.0.1", 21001),
        }
    )
    role = type(state.state).__name__
    state.stop()
    return f"four nodes, the candidate's own vote and one other: {role}"


async def double_vote() -> str:
    """Two votes in one term, with a restart between them."""
    granted = []
    for candidate in ("127.0.0.1:1", "127.0.0.1:2"):
        state = make_state(22000)
        state.request_handler(
            {"type": "request_vote", "term": 5, "candidate_id": candidate, "last_log_index": 0, "last_log_term": 0,
             "sender": ("127.0.0.1", 1)}
        )  # fmt: skip
        await asyncio.sleep(0)
        granted += [(m["term"], candidate) for m in state.server.sent if m.get("vote_granted")]
        state.stop()
    return f"votes granted as (term, candidate), restarted in between: {granted}"


async def late_append() -> str:
    """A follower with three committed entries gets the first append once more."""
    state = make_state(23000)
    for index in (1, 2, 3):
        state.request_handler(append(index, 1, index, index))
    state.request_handler(append(3, 1, 3, 3))  # also a repetition, of the last entry
    before = (state.log.last_log_index, state.log.commit_index)
    state.request_handler(append(1, 1, 1, 1))
    after = (state.log.last_log_index, state.log.commit_index)
    state.stop()
    return f"(last index, commit index) before {before}, after the repeated first append {after}"


async def wrong_acknowledgement() -> str:
    """Two writes; only the first is acknowledged by a follower."""
    state = make_state(24000)
    state.to_candidate()
    state.to_leader()
    first = asyncio.ensure_future(state.state.execute_command({"first": 1}))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(state.state.execute_command({"second": 2}))
    await asyncio.sleep(0)
    answer = {
        "type": "append_entries_response", "term": state.storage.term, "success": True, "request_id": 1,
        "last_log_index": 1, "sender": ("127.0.0.1", 24001),
    }  # fmt: skip
    state.request_handler(dict(answer))
    state.request_handler(dict(answer))
    await asyncio.sleep(0)
    result = f"commit index {state.log.commit_index}; first acknowledged: {first.done()}, second: {second.done()}"
    first.cancel()
    second.cancel()
    state.stop()
    return result


async def term_ten() -> str:
    """Entries of term 9 and 10, read back after a restart."""
    seen = []
    for term in (9, 10):
        state = make_state(25000 + term * 10)
        state.log.write(term, {"k": 1})
        state.stop()
        try:
            again = make_state(25000 + term * 10)
            again.stop()
            seen.append(f"term {term}: {len(again.log)} entry read back")
        except Exception as error:
            seen.append(f"term {term}: {type(error).__name__} ({error})")
    return "; ".join(seen)


# Real processes on loopback: `node` is one, driven by one JSON command a line.


async def register(port: int) -> str:
    """What register() does."""
    import raftos

    try:
        await asyncio.wait_for(raftos.register(f"127.0.0.1:{port}", cluster=[f"127.0.0.1:{port}"]), 5)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


async def read_back() -> str:
    """What a log with one entry says when it is opened again."""
    from raftos.storage import Log  # type: ignore[import-not-found]

    Log("node").write(1, {"k": 1})
    try:
        return f"{len(Log('node'))} entry read back"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


async def node(port: int, ports: list[int]) -> None:
    """One node: reads commands from stdin, answers on stdout, until stdin ends."""
    import raftos

    await raftos.register(f"127.0.0.1:{port}", cluster=[f"127.0.0.1:{p}" for p in ports])
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "leader":
            answer: object = raftos.get_leader() == f"127.0.0.1:{port}"
        else:
            answer = await writes(command["count"], "x" * command["size"])
        print(json.dumps(answer), flush=True)


async def writes(count: int, value: str) -> int:
    """Start `count` writes at once; how many are acknowledged within the timeout."""
    import raftos

    tasks = [asyncio.ensure_future(raftos.Replicated(name=f"k{n}").set(value)) for n in range(count)]
    done, pending = await asyncio.wait(tasks, timeout=WRITE_TIMEOUT_S)
    for task in pending:
        task.cancel()
    return sum(1 for task in done if task.exception() is None)


class Cluster:
    """Three node processes. Use it as a context manager: it ends what it started."""

    def __init__(self, package: Path, directory: Path, prefix: tuple[str, ...] = ()) -> None:
        self.package, self.directory, self.prefix = package, directory, prefix
        self.ports = free_ports(3)
        self.running: dict[int, subprocess.Popen[str]] = {}

    def start(self, port: int) -> None:
        """Start one node."""
        command = [*self.prefix, sys.executable, __file__, "--node", str(self.package), str(self.directory), str(port)]
        self.running[port] = subprocess.Popen(
            command + [str(p) for p in self.ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def ask(self, port: int, **command: object) -> Any:
        """Send one command and wait for its answer."""
        process = self.running[port]
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def leader(self, tries: int = 40) -> int | None:
        """The port of the node that believes itself leader, polled every quarter of a second."""
        for _ in range(tries):
            for port in list(self.running):
                if self.ask(port, do="leader"):
                    return port
            asyncio.run(asyncio.sleep(0.25))
        return None

    def write(self, count: int = 1, size: int = 10) -> str:
        """Writes through the leader."""
        port = self.leader()
        return "no leader" if port is None else f"{self.ask(port, do='write', count=count, size=size)} of {count}"

    def kill(self, port: int) -> None:
        """SIGKILL one node."""
        process = self.running.pop(port)
        process.kill()
        process.wait()

    def __enter__(self) -> Cluster:
        for port in self.ports:
            self.start(port)
        return self

    def __exit__(self, *_: object) -> None:
        for port in list(self.running):
            self.kill(port)


def free_ports(count: int) -> list[int]:
    """UDP ports that are free on loopback."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def concurrent_writes(package: Path, directory: Path) -> str:
    """100 writes at once, after one that shows that the cluster works."""
    with Cluster(package, directory) as cluster:
        return f"one write: {cluster.write()} acknowledged; a hundred at once: {cluster.write(100)}"


def large_value(package: Path, directory: Path) -> str:
    """A value of 64 KiB, and small ones after it."""
    with Cluster(package, directory) as cluster:
        before = cluster.write()
        large = cluster.write(1, 65_536)
        after = [cluster.write() for _ in range(3)]
    return f"small: {before}; 64 KiB: {large}; small ones after it: {after}"


def leader_killed(package: Path, directory: Path) -> str:
    """SIGKILL of the leader, its restart, a restart of all."""
    with Cluster(package, directory) as cluster:
        before = [cluster.write() for _ in range(3)]
        dead = cluster.leader()
        assert dead is not None
        cluster.kill(dead)
        without = [cluster.write() for _ in range(2)]
        cluster.start(dead)
        joined = [cluster.write() for _ in range(2)]
        for port in cluster.ports:
            cluster.kill(port)
            cluster.start(port)
        restarted = [cluster.write() for _ in range(2)]
    return f"before {before}; leader killed {without}; it is back {joined}; all restarted {restarted}"


def syncs(package: Path, directory: Path) -> str:
    """Every fsync-like system call of three nodes that acknowledge five writes."""
    if shutil.which("strace") is None:
        return "not tried: strace is not installed"
    trace = directory.parent / "trace"
    directory.mkdir(parents=True)
    calls = "fsync,fdatasync,sync,syncfs,sync_file_range,msync,openat"
    prefix = ("strace", "-ff", "-o", str(trace), "-e", f"trace={calls}")
    with Cluster(package, directory, prefix) as cluster:
        written = [cluster.write() for _ in range(5)]
        for process in cluster.running.values():
            assert process.stdin
            process.stdin.close()
        for process in cluster.running.values():
            process.wait(timeout=10)
    lines = [line for path in trace.parent.glob("trace.*") for line in path.read_text().splitlines()]
    opened = sum(f'"{directory}' in line for line in lines)
    flagged = sum("O_SYNC" in line or "O_DSYNC" in line for line in lines)
    synced = sum("sync" in line.split("(")[0] for line in lines)
    return f"acknowledged {written}; its files opened {opened} times, with O_SYNC {flagged}; sync calls {synced}"


PROCESSES: dict[str, Callable[[Path, Path], str]] = {
    "concurrent": concurrent_writes, "64 KiB": large_value, "kill -9": leader_killed, "syncs": syncs,
}  # fmt: skip
STATES = {
    "votes": votes, "double vote": double_vote, "late append": late_append,
    "acknowledgement": wrong_acknowledgement, "term 10": term_ten,
}  # fmt: skip


def use(package: Path, log_directory: Path) -> None:
    """Import raftos from `package`; its files go to `log_directory`."""
    sys.path.insert(0, str(package))
    import raftos

    raftos.configure({"log_path": str(log_directory) + "/"})


def main(arguments: list[str]) -> None:
    """Run every check once."""
    if arguments[0] == "--node":
        use(Path(arguments[1]), Path(arguments[2]))
        asyncio.run(node(int(arguments[3]), [int(port) for port in arguments[4:]]))
        return
    if arguments[0] in ("--register", "--read-back"):
        use(Path(arguments[1]), Path(arguments[2]))
        print(asyncio.run(register(free_ports(1)[0]) if arguments[0] == "--register" else read_back()))
        return
    source = Path(arguments[0]).resolve()
    print(f"CPython {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        copy(source, directory / "original", [])
        copy(source, directory / "started", PATCHES)
        copy(source, directory / "patched", [*PATCHES, READ_PATCH])
        for title, package in (("register", "original"), ("read-back", "started")):
            command = [sys.executable, __file__, f"--{title}", str(directory / package), str(directory / "logs")]
            ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            print(f"{title:16}{(ran.stdout or ran.stderr).strip().splitlines()[-1]}")
        use(directory / "patched", directory / "states")
        for title, state_check in STATES.items():
            print(f"{title:16}{asyncio.run(asyncio.wait_for(state_check(), 10))}", flush=True)
        for title, check in PROCESSES.items():
            own = directory / title.replace(" ", "-")
            print(f"{title:16}{check(directory / 'patched', own / 'logs')}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
