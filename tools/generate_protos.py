"""Generate the protobuf messages of protos/ into kvnode/proto.

The generated modules import each other by the proto's own path ("from kv.v1 import ..."); they are
moved under the package so that installing kvnode never claims the top-level name `kv`.
Services have no generated stubs: kvnode names their methods in its own typed tables.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "protos"
TARGET = ROOT / "kvnode" / "proto"


def main() -> int:
    """Generate everything; return protoc's exit status."""
    files = sorted(str(path) for path in SOURCE.rglob("*.proto"))
    include = str(Path(grpc_tools.__file__).parent / "_proto")
    arguments = ["protoc", f"-I{SOURCE}", f"-I{include}", f"--python_out={TARGET}", f"--pyi_out={TARGET}"]
    status = protoc.main(arguments + files)
    if status:
        return int(status)
    for path in [*TARGET.rglob("*_pb2.py"), *TARGET.rglob("*_pb2.pyi")]:
        text = re.sub(r"^from kv(\.|\s)", r"from kvnode.proto.kv\1", path.read_text(), flags=re.MULTILINE)
        path.write_text(text)
    for folder in {path.parent for path in TARGET.rglob("*_pb2.py")}:
        while folder != TARGET:
            (folder / "__init__.py").touch()
            folder = folder.parent
    return 0


if __name__ == "__main__":
    sys.exit(main())
