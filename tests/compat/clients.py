"""The real clients: what they need from the machine, and their installation into a folder that git ignores.

npm `deno` and `@deno/kv` come from clients/package-lock.json, PyPI `denokv` from clients/denokv.txt into a virtual
environment of its own, because it pins an old protobuf. Neither lock names a host: npm and pip ask the registry that
they are configured for.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LOCKS = HERE / "clients"
BUILD = HERE / ".build"
PROGRAMS = HERE / "programs"

_INSTALL_TIMEOUT_S = 600
_NEEDED = {"node": "nodejs", "npm": "npm"}


class ClientsMissing(Exception):
    """The machine has not what the clients need; the message says what to install."""


class Client(NamedTuple):
    """One client.

    Args:
        name: as the programs know it.
        title: its column in the table.
        command: what runs its programs.
        programs: the files, in the order of the table.
    """

    name: str
    title: str
    command: tuple[str, ...]
    programs: tuple[str, ...]


JS_PROGRAMS = (
    "opening.mjs",
    "reading.mjs",
    "writing.mjs",
    "listing.mjs",
    "atomics.mjs",
    "sums.mjs",
    "limits.mjs",
    "expiring.mjs",
    "watching.mjs",
    "values.mjs",
    "tokens.mjs",
    "queues.mjs",
)
PYTHON_PROGRAMS = ("reading", "writing", "listing", "sums", "limits", "expiring", "values", "tokens")


def missing() -> str:
    """What the machine lacks and how to get it; "" when it lacks nothing."""
    packages = [package for command, package in _NEEDED.items() if shutil.which(command) is None]
    if not packages:
        return ""
    return f"the clients need {' and '.join(packages)}: on Debian 'apt install {' '.join(packages)}'"


def install() -> None:
    """Install what is not there yet, one process at a time. Raises ClientsMissing, subprocess.CalledProcessError."""
    if lacking := missing():
        raise ClientsMissing(lacking)
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / ".installing").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever waited finds all in place
        _install_npm(BUILD / "npm")
        _install_denokv(BUILD / "denokv")


def _install_npm(folder: Path) -> None:
    locks = [LOCKS / "package.json", LOCKS / "package-lock.json"]
    if _is_current(folder, locks):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for lock in locks:
        shutil.copy(lock, folder)
    # No install script is needed: deno's binary lies in the package of its platform. `npm ci` would insist on the
    # packages of every other platform, which a mirror may not have.
    command = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=folder, check=True, timeout=_INSTALL_TIMEOUT_S, stdout=sys.stderr)
    _mark(folder, locks)


def _install_denokv(folder: Path) -> None:
    locks = [LOCKS / "denokv.txt"]
    if _is_current(folder, locks):
        return
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=_INSTALL_TIMEOUT_S)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--require-hashes", "-r", str(locks[0])]
    subprocess.run(command, check=True, timeout=_INSTALL_TIMEOUT_S, stdout=sys.stderr)
    _mark(folder, locks)


def _is_current(folder: Path, locks: list[Path]) -> bool:
    mark = folder / ".locks"
    return mark.exists() and mark.read_text() == _digest(locks)


def _mark(folder: Path, locks: list[Path]) -> None:
    (folder / ".locks").write_text(_digest(locks))


def _digest(locks: list[Path]) -> str:
    return hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()


def versions() -> dict[str, str]:
    """Of each client, from the locks."""
    packages = json.loads((LOCKS / "package.json").read_text())["dependencies"]
    denokv = (LOCKS / "denokv.in").read_text().strip().partition("==")[2]
    return {"deno": packages["deno"], "node": packages["@deno/kv"], "denokv": denokv}


def clients() -> list[Client]:
    """All of them, as installed."""
    number = versions()
    deno_flags = ("run", "-A", "--no-lock", "--no-check", "--quiet", "--unstable-kv")
    javascript, python = str(PROGRAMS / "js" / "main.mjs"), str(PROGRAMS / "python" / "main.py")
    run_python = (str(BUILD / "denokv" / "bin" / "python"), python)
    return [
        Client("deno", f"Deno {number['deno']}", (deno_binary(), *deno_flags, javascript), JS_PROGRAMS),
        Client("node", f"@deno/kv {number['node']} on Node", ("node", "--no-warnings", javascript), JS_PROGRAMS),
        Client("denokv", f"denokv {number['denokv']} on Python", run_python, PYTHON_PROGRAMS),
        Client("wire", "the protocol, without a client", run_python, ("wire",)),
    ]


def deno_binary() -> str:
    """The executable in the package of this platform. Raises ClientsMissing."""
    found = sorted((BUILD / "npm" / "node_modules" / "@deno").glob("*/deno"))
    if not found:
        raise ClientsMissing("npm has no deno for this platform")
    return str(found[0])


def node_kv() -> str:
    """@deno/kv as a module to import."""
    return (BUILD / "npm" / "node_modules" / "@deno" / "kv" / "esm" / "npm.js").as_uri()


def environment(token: str, certificate: Path | None = None) -> dict[str, str]:
    """Of a client's process: the access token, and the authority that it trusts over https."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DENO_", "NODE_", "KVNODE_"))}
    kept |= {"DENO_KV_ACCESS_TOKEN": token, "DENO_NO_UPDATE_CHECK": "1", "DENO_DIR": str(BUILD / "deno")}
    kept |= {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    if certificate is not None:
        kept |= dict.fromkeys(("DENO_CERT", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"), str(certificate))
    return kept


def main() -> int:
    """Install, and print where Deno is: `python -m tests.compat.clients`."""
    try:
        install()
        print(deno_binary())
    except ClientsMissing as error:
        print(f"compat: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
