"""Which addresses a push may call."""

from __future__ import annotations

import ipaddress

import pytest

from kvnode.base.errors import ConfigError
from kvnode.machine.queue.push_url import parse_push_url
from kvnode.node.push.addresses import AddressPolicy, NotCalled, allowed_addresses

PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8")
OTHERS = (
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:0:808:808:0:0:80ff:fffe",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "ff02::1",
    "2001:db8::1",
)


@pytest.mark.parametrize("text", PUBLIC)
def test_the_internet_may_be_called(text: str) -> None:
    assert AddressPolicy().allows(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", OTHERS)
def test_nothing_else_may_unless_it_is_allowed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not AddressPolicy().allows(address)
    assert AddressPolicy([text]).allows(address)
    assert AddressPolicy(["0.0.0.0/0", "::/0"]).allows(address)


def test_a_network_is_allowed_and_its_neighbour_is_not() -> None:
    policy = AddressPolicy(["10.1.0.0/16"])
    assert policy.allows(ipaddress.ip_address("10.1.2.3"))
    assert policy.allows(ipaddress.ip_address("::ffff:10.1.2.3"))
    assert not policy.allows(ipaddress.ip_address("10.2.0.1"))
    with pytest.raises(ConfigError, match="push_allow"):
        AddressPolicy(["10.1.0.0/99"])


async def test_it_is_the_resolved_address_that_is_judged() -> None:
    url = parse_push_url("http://localhost:1/")
    with pytest.raises(NotCalled, match="push_allow"):
        await allowed_addresses(url, AddressPolicy())
    found = await allowed_addresses(url, AddressPolicy(["127.0.0.0/8", "::1"]))
    assert set(found) <= {"127.0.0.1", "::1"} and found
    for disguised in ("http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://[::ffff:127.0.0.1]/"):
        with pytest.raises(NotCalled):
            await allowed_addresses(parse_push_url(disguised), AddressPolicy())


async def test_a_name_without_an_address_is_not_called() -> None:
    with pytest.raises(NotCalled, match=r"not known|not found"):
        await allowed_addresses(parse_push_url("http://does-not-exist.invalid/"), AddressPolicy())
