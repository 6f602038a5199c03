"""How far an export or import is, beside its file: written whole and renamed, so that it is never torn."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kvnode.base.errors import InvalidRequest


class ProgressFile:
    """A small JSON object beside a file.

    Args:
        file: what is exported to or imported from.
        kind: "export" or "import"; part of the name.
    """

    def __init__(self, file: Path, kind: str) -> None:
        self.path = file.with_name(f"{file.name}.{kind}-progress")

    def load(self) -> dict[str, Any]:
        """What was saved. Raises InvalidRequest: NOTHING_TO_RESUME."""
        try:
            saved = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            raise InvalidRequest(
                "NOTHING_TO_RESUME",
                f"there is no {self.path}: nothing broke off here, or it has been finished. Leave --resume out.",
            ) from None
        except (OSError, ValueError) as error:
            raise InvalidRequest("NOTHING_TO_RESUME", f"{self.path} cannot be read: {error}") from None
        if not isinstance(saved, dict):
            raise InvalidRequest("NOTHING_TO_RESUME", f"{self.path} is not what export or import wrote.")
        return saved

    def save(self, progress: dict[str, Any]) -> None:
        """Replace it. Raises InvalidRequest: PROGRESS_NOT_SAVED."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("w") as file:
                json.dump(progress, file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            raise InvalidRequest("PROGRESS_NOT_SAVED", f"cannot write {self.path}: {error.strerror}") from None

    def remove(self) -> None:
        """It is done."""
        self.path.unlink(missing_ok=True)
