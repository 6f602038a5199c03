"""database and token, and --database and --token of the others."""

from __future__ import annotations

from tests.unit.api.test_grpc_directory import STATIC, served
from tests.unit.cli.conftest import Cli


async def test_the_life_of_a_database() -> None:
    async with served() as ground:
        cli = Cli(ground.address)
        made = await cli("database", "create", "orders", "--max-value-bytes", "100000", "-o", "json")
        assert made.status == 0
        assert (made.json["name"], made.json["mode"], made.json["max_value_bytes"]) == ("orders", "enabled", 100_000)
        twice = await cli("database", "create", "orders")
        assert (twice.status, "DATABASE_EXISTS" in twice.err) == (2, True)
        assert (await cli("database", "rename", "orders", "bills")).out == f"OK bills {made.json['uuid']}\n"
        listed = await cli("database", "list")
        assert "default" in listed.out and "bills" in listed.out
        changed = await cli("database", "set", "bills", "--mode", "read-only", "-o", "json")
        assert changed.json["mode"] == "read-only"
        assert (await cli("database", "set", "bills")).status == 2
        shown = await cli("database", "show", "bills", "--count", "-o", "json")
        assert shown.json["keys"] == 0
        unasked = await cli("database", "delete", "bills")
        assert (unasked.status, "--yes" in unasked.err) == (2, True)
        assert (await cli("database", "delete", "bills", "--yes", "-o", "json")).json["uuid"] == made.json["uuid"]
        purging = await cli("database", "show", "bills", "-o", "json")
        assert purging.json["deleted"] is True
        assert (await cli("database", "show", "bills")).out.startswith("deleted")
        assert (await cli("database", "show", "nobody")).status == 6
        assert (await cli("database", "delete", "default", "--yes")).status == 8
        assert (await cli("database", "list", "-o", "json")).out.count("\n") == 2


async def test_a_largest_value_below_1_is_refused_and_not_taken_for_none_given() -> None:
    async with served() as ground:
        cli = Cli(ground.address)
        for wrong in ("0", "-1"):
            created = await cli("database", "create", "photos", "--max-value-bytes", wrong)
            both = await cli("database", "set", "default", "--mode", "read-only", "--max-value-bytes", wrong)
            assert (created.status, both.status) == (2, 2)
            assert all("--max-value-bytes" in each.err and "equal to 1" in each.err for each in (created, both))
        shown = await cli("database", "show", "default", "-o", "json")
        assert shown.json["mode"] == "enabled"
        assert (await cli("database", "show", "photos")).status == 6


async def test_the_life_of_a_token() -> None:
    async with served() as ground:
        cli = Cli(ground.address)
        await cli("database", "create", "orders")
        made = await cli(
            "token", "create", "--database", "orders", "--right", "read", "--expires-in", "30d", "--label", "reports"
        )
        secret = made.out.strip()
        assert made.status == 0 and secret.startswith("kvn_") and "\n" not in secret
        assert "not shown again" in made.err and secret not in made.err
        listed = await cli("token", "list")
        assert "reports" in listed.out and f"...{secret[-4:]}" in listed.out and secret not in listed.out
        denied = await cli("set", '["a"]', "1", "--database", "orders", KVNODE_TOKEN=secret)
        assert (denied.status, "TOKEN_READ_ONLY" in denied.err) == (8, True)
        empty = await cli("delete", "--prefix", '["nothing"]', "--database", "orders", KVNODE_TOKEN=secret)
        assert (empty.status, empty.out, "TOKEN_READ_ONLY" in empty.err) == (8, "", True)
        read = await cli("get", '["a"]', "--token", secret, KVNODE_DATABASE="orders")
        assert read.status == 6, "the key does not exist"
        (shown,) = [each for each in [(await cli("token", "list", "-o", "json")).json] if each["label"] == "reports"]
        assert (await cli("token", "revoke", shown["id"])).out == f"OK {shown['id']}\n"
        assert (await cli("token", "revoke", shown["id"])).status == 6
        revoked = await cli("get", '["a"]', "--database", "orders", KVNODE_TOKEN=secret)
        assert revoked.status == 8
        clash = await cli("token", "create", "--all-databases", "--database", "orders")
        assert clash.status == 2
        everywhere = await cli("token", "create", "--right", "admin", "-o", "json")
        assert (everywhere.json["database"], everywhere.json["right"]) == (None, "admin")


async def test_where_tokens_are_needed() -> None:
    async with served(needs_token=True) as ground:
        cli = Cli(ground.address)
        for command in (("get", '["a"]'), ("status",), ("member", "list"), ("database", "list"), ("count",)):
            refused = await cli(*command)
            assert (refused.status, "phase auth" in refused.err) == (8, True), command
        assert (await cli("database", "list", KVNODE_TOKEN=STATIC)).status == 0
        assert (await cli("set", '["a"]', "1", KVNODE_TOKEN=STATIC)).status == 0
        assert (await cli("get", '["a"]', "--database", "nobody", KVNODE_TOKEN=STATIC)).status == 6


async def test_the_static_token_is_never_shown(cli: Cli) -> None:
    shown = await cli("config", "show", "-o", "json", KVNODE_ACCESS_TOKEN="do-not-show-me")
    assert "do-not-show-me" not in shown.out
    assert shown.json["access_token"]["origin"] == "environment"


async def test_flags_of_denokv_are_answered(cli: Cli) -> None:
    for flags, says in (
        (("--sqlite-path", "x.db"), "import"),
        (("--read-only",), "database set"),
        (("--s3-bucket", "b"), "bucket"),
    ):
        refused = await cli("serve", *flags)
        assert refused.status == 2
        assert says in refused.err
    left_aside = await cli("serve", "--num-workers", "4", "--config", "/no/such/file")
    assert "--num-workers is a setting of the denokv server and is left aside" in left_aside.err
    assert "/no/such/file" in left_aside.err
    first = await cli("--sqlite-path", "x.db", "serve")  # where the denokv server takes it
    assert first.status == 2
    assert "kvnode import" in " ".join(first.err.replace("│", " ").split())
    hidden = await cli("serve", "--help")
    assert "sqlite" not in hidden.out
