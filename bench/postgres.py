"""PostgreSQL with two standbys, commits confirmed by any one of them: a third row where it is installed.

Its protocol has one statement under way a connection, so its callers have a connection each; pgbench, in C,
is its generator. Everything else is as initdb leaves it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench.build import BUILD
from cluster.ports import free_ports
from cluster.processes import cpu_seconds

USER = "postgres"
UPSERT = """\\set key random(0, {keys})
INSERT INTO kv VALUES (:key, repeat('x', {bytes})) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value;
"""


def installed() -> Path | None:
    """The folder of its programs; None when it, or its user, is not there."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return None
    return found[-1].parent if found and os.geteuid() == 0 else None


class PostgresGroup:
    """A primary and two standbys."""

    name = "postgresql"

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.ports = free_ports(3)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.chown(folder, USER, USER)

    def start(self) -> None:
        primary = self.folder / "primary"
        self._run("initdb", "--auth=trust", "-D", str(primary), "--username", USER)
        self._configure(primary, self.ports[0], "wal_level = replica\nmax_wal_senders = 8\nmax_connections = 400\n")
        self._control("start", primary)
        self.sql("CREATE TABLE kv (key bigint PRIMARY KEY, value text)")
        for number in (1, 2):
            standby = self.folder / f"standby{number}"
            connection = f"host=127.0.0.1 port={self.ports[0]} user={USER} application_name=s{number}"
            self._run("pg_basebackup", "-D", str(standby), "-d", connection, "-R", "-X", "stream", "-c", "fast")
            self._configure(standby, self.ports[number], "")
            self._control("start", standby)
        self.sql("ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'")
        self.sql("SELECT pg_reload_conf()")
        time.sleep(1)

    def load(self, keys_count: int, value_bytes: int) -> None:
        self.sql(f"INSERT INTO kv SELECT n, repeat('x', {value_bytes}) FROM generate_series(0, {keys_count}) n")
        self.sql("VACUUM ANALYZE kv")

    def measure(self, callers: int, seconds: int, keys_count: int, value_bytes: int) -> dict[str, Any]:
        """Upserts through prepared statements; the same fields as the load generator's."""
        return self.pgbench("put", UPSERT.format(keys=keys_count, bytes=value_bytes), callers, seconds)

    def pgbench(self, mode: str, text: str, callers: int, seconds: int) -> dict[str, Any]:
        """Callers that run a script through prepared statements, each on a connection of its own."""
        script = self.folder / f"{mode}.sql"
        script.write_text(text)
        prefix = self.folder / f"latency-{callers}"
        before = self._cpu()
        started = time.monotonic()
        self._run(
            "pgbench", "-h", "127.0.0.1", "-p", str(self.ports[0]), "-U", USER, "-n", "-M", "prepared",
            "-f", str(script), "-c", str(callers), "-j", "2", "-T", str(seconds),
            "--log", f"--log-prefix={prefix}", "postgres",
        )  # fmt: skip
        elapsed, cpu = time.monotonic() - started, self._cpu() - before
        latencies = sorted(
            int(line.split()[2]) / 1000
            for path in self.folder.glob(f"latency-{callers}.*")
            for line in path.read_text().splitlines()
        )
        for path in self.folder.glob(f"latency-{callers}.*"):
            path.unlink()
        count = len(latencies)
        return {
            "mode": mode, "callers": callers, "seconds": elapsed, "operations": count,
            "operations_per_second": count / elapsed, "errors": 0,
            "p50_ms": latencies[count // 2], "p99_ms": latencies[int(count * 0.99)], "max_ms": latencies[-1],
            "server_cpu_us_per_operation": cpu / count * 1e6,
        }  # fmt: skip

    def close(self) -> None:
        for name in ("standby1", "standby2", "primary"):
            if (self.folder / name / "postmaster.pid").exists():
                self._control("stop", self.folder / name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _cpu(self) -> float:
        """Of every process under the three postmasters, those that have ended not included."""
        total = 0.0
        for name in ("primary", "standby1", "standby2"):
            postmaster = (self.folder / name / "postmaster.pid").read_text().split()[0]
            for children in Path(f"/proc/{postmaster}/task").glob("*/children"):
                total += sum(cpu_seconds(int(pid)) for pid in children.read_text().split())
            # A postmaster's own figure is small; that of ended backends is in its cutime and cstime.
            fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        return total

    def _configure(self, data: Path, port: int, more: str) -> None:
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n{more}")

    def _control(self, verb: str, data: Path, *, check: bool = True) -> None:
        mode = ["-m", "immediate"] if verb == "stop" else []
        self._run("pg_ctl", "-D", str(data), "-l", f"{data}.log", "-w", *mode, verb, check=check)

    def sql(self, statement: str) -> None:
        """Run it at the primary."""
        self._run("psql", "-h", "127.0.0.1", "-p", str(self.ports[0]), "-U", USER, "-q", "-c", statement, "postgres")

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        command = [str(self.programs / program), *arguments]
        # The servers keep pg_ctl's output open, so it goes to a file and not to a pipe.
        log = self.folder / "commands.log"
        with log.open("ab") as output:
            done = subprocess.run(
                command, stdout=output, stderr=output, user=USER, group=USER, extra_groups=[], cwd="/", check=False
            )
        if check and done.returncode:
            raise RuntimeError(f"{program} failed:\n{log.read_text()[-2000:]}")


def folder() -> Path:
    """Where its data goes: beside the others', but open to its own user."""
    return BUILD / "data" / "postgresql"
