"""Runs programs in a client and prints one JSON line a feature.

    python main.py '{"url": ..., "run": ..., "programs": ["reading"], ...}'

The access token comes in DENO_KV_ACCESS_TOKEN, where denokv looks for it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import warnings
from typing import Any

from denokv import open_kv
from harness import FEATURES, Environment, run_feature
from wire_client import open_wire


async def _main() -> None:
    options = json.loads(sys.argv[1])
    token = os.environ.get("DENO_KV_ACCESS_TOKEN", "")

    async def open_(url: str = options["url"], access_token: str = token, **more: Any) -> Any:
        if options["client"] == "wire":
            return await open_wire(url, access_token, **more)
        return await open_kv(url, access_token=access_token, **more)

    quick, prepared = options.get("quick", False), options.get("prepared", {})
    environment = Environment(options["url"], token, options["run"], quick, prepared, open_)
    for program in options["programs"]:
        importlib.import_module(program)
    for number, declared in enumerate(FEATURES, start=1):
        if options.get("only") and options["only"] not in declared.title:
            continue
        if environment.quick and declared.slow:
            continue
        print(json.dumps(await run_feature(declared, environment, number)), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(_main())
