"""The ports of the proxy, and what an order from outside does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cluster.wan.connections import Dialler
from cluster.wan.links import Links

Order = dict[str, Any]
Answer = dict[str, Any]
HOST = "127.0.0.1"


class WanServer:
    """Sites, their ports, the links between them."""

    def __init__(self) -> None:
        self.links = Links()
        self._sites: dict[str, str] = {}  # by address: a host, or host:port
        self._names: dict[str, None] = {}
        self._servers: list[asyncio.Server] = []
        self._orders: dict[str, Callable[[Order], Any]] = {
            "cut": lambda order: self._each(order, self.links.cut),
            "heal": lambda order: self._each(order, self.links.heal),
            "delay": lambda order: self._each(order, self._delay(float(order["one_way_ms"]))),
            "carried": lambda order: {
                "carried": [[link.source, link.target, link.carried_bytes] for link in self.links.all()]
            },
        }

    async def obey(self, order: Order) -> Answer:
        """Do what an order says. Raises KeyError, ValueError, OSError.

        site      name, addresses: hosts or host:ports of a site; answers the port by which it dials
        forward   site, target: a port that leads from a site to an address
        delay     pairs, one_way_ms: of these links
        cut, heal pairs: of source and target; no pairs = all
        carried   bytes by link
        """
        kind = order["order"]
        if kind == "site":
            return await self._site(order)
        if kind == "forward":
            return await self._forward(order)
        return self._orders[kind](order) or {}

    async def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()
        self.links.close()

    async def _site(self, order: Order) -> Answer:
        name = order["name"]
        self._sites.update(dict.fromkeys(order["addresses"], name))
        self._names[name] = None
        return {"address": await self._listen(name, "")}

    async def _forward(self, order: Order) -> Answer:
        self._resolve(order["target"])
        return {"address": await self._listen(order["site"], order["target"])}

    async def _listen(self, site: str, target: str) -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Dialler(self.links, site, self._resolve, target), HOST, 0)
        self._servers.append(server)
        return f"{HOST}:{server.sockets[0].getsockname()[1]}"

    def _resolve(self, address: str) -> str:
        return self._sites.get(address) or self._sites[address.rpartition(":")[0]]

    def _each(self, order: Order, act: Callable[[str, str], None]) -> None:
        pairs = order.get("pairs")
        if pairs is None:
            pairs = [(link.source, link.target) for link in self.links.all()]
        for source, target in pairs:
            if source not in self._names or target not in self._names:
                raise KeyError(f"there is no link from {source} to {target}")
            act(source, target)

    def _delay(self, one_way_ms: float) -> Callable[[str, str], None]:
        return lambda source, target: self.links.set_delay(source, target, one_way_ms / 1_000)
