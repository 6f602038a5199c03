"""The JavaScript module and its types, as every node serves them."""

from __future__ import annotations

from pathlib import Path

from kvnode.api.http import Response

MODULE_PATH = "/kvnode.js"
TYPES_PATH = "/kvnode.d.ts"

_FOLDER = Path(__file__).parent
_TYPES_HEADER = ("x-typescript-types", f".{TYPES_PATH}")


class Module:
    """Reads the files once, when they are first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Response] = {}

    def response(self, path: str) -> Response:
        """The file of that path, one of the two."""
        if path not in self._made:
            self._made[path] = _read(path)
        return self._made[path]


def _read(path: str) -> Response:
    body = (_FOLDER / path.lstrip("/")).read_bytes()
    if path == MODULE_PATH:
        return Response(200, body, "text/javascript; charset=utf-8", (_TYPES_HEADER,))
    return Response(200, body, "application/typescript; charset=utf-8")
