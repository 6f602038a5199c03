"""Arguments that are no text: bytes of a command line that are not UTF-8, as another locale would have them."""

import pytest

from tests.unit.cli.conftest import Cli

LATIN_1 = "caf\udce9"  # as Python reads the byte E9


@pytest.mark.parametrize(
    ("code", "command"),
    [
        ("BAD_QUEUE_NAME", ("queue", "send", "1", "--queue", LATIN_1)),
        ("BAD_QUEUE_NAME", ("queue", "stats", LATIN_1)),
        ("BAD_CRON_NAME", ("cron", "delete", LATIN_1)),
        ("DATABASE_NAME_INVALID", ("database", "create", LATIN_1)),
        ("DATABASE_NAME_INVALID", ("database", "delete", LATIN_1, "--yes")),
        ("DATABASE_NAME_INVALID", ("get", '["a"]', "--database", LATIN_1)),
        ("BAD_TEXT", ("token", "create", "--label", LATIN_1)),
        ("ENDPOINT_INVALID", ("get", '["a"]', "--endpoints", f"{LATIN_1}:4510")),
        ("ENDPOINT_INVALID", ("member", "add", f"{LATIN_1}:4510")),
    ],
)
async def test_a_text_that_cannot_be_sent_is_wrong_usage(cli: Cli, code: str, command: tuple[str, ...]) -> None:
    ran = await cli(*command)
    assert (ran.status, code in ran.err) == (2, True), ran.err
