"""Where a queue is pushed: what is taken, what stays, and that the version tells of every change."""

import base64

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.queue import keys, push
from kvnode.machine.queue.push_url import PushUrl, parse_push_url
from kvnode.machine.validate import validate_write
from kvnode.machine.verdict import Accepted, Rejected
from kvnode.proto.kv.internal.v1 import queue_rows_pb2 as rows
from kvnode.proto.kv.v1 import kv_pb2
from tests.unit.machine.queue.test_transactions import Database, act

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


def configure(queue="mail", **more):
    return act(configure={"queue": queue, "keep_max_messages": True, **more})


def version(database):
    row = database.state.get(keys.PUSH_VERSION_KEY)
    return b"" if row is None else row.versionstamp


@pytest.mark.parametrize(
    ("text", "parts", "authority"),
    [
        ("https://example.com/hook", PushUrl("https", "example.com", 443, "/hook"), "example.com"),
        ("http://example.com", PushUrl("http", "example.com", 80, "/"), "example.com"),
        ("HTTPS://Example.com:8443/a?b=c", PushUrl("https", "example.com", 8443, "/a?b=c"), "example.com:8443"),
        ("http://example.com:80?x", PushUrl("http", "example.com", 80, "/?x"), "example.com"),
        ("http://[2001:DB8::1]:81/", PushUrl("http", "2001:db8::1", 81, "/"), "[2001:db8::1]:81"),
        ("http://127.0.0.1/", PushUrl("http", "127.0.0.1", 80, "/"), "127.0.0.1"),
        ("http://a_b.internal./", PushUrl("http", "a_b.internal.", 80, "/"), "a_b.internal."),
    ],
)
def test_urls_that_are_taken(text, parts, authority):
    assert parse_push_url(text) == parts
    assert parts.authority == authority


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/hook",
        "ftp://example.com/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://example.com/#part",
        "http://example.com#",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:x/",
        "http://example.com/a b",
        "http://example.com/\r\nHost: other",
        "http://example.com\\@internal/",
        "http://exämple.com/",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[127.0.0.1]/",
        "http://-example.com/",
        "http://ex!ample.com/",
        "http://" + "a" * 254 + "/",
        "http://example.com/" + "a" * limits.MAX_PUSH_URL_BYTES,
    ],
)
def test_urls_that_are_not(text):
    with pytest.raises(InvalidRequest) as caught:
        parse_push_url(text)
    assert caught.value.code == "BAD_PUSH_URL"
    assert "password@" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"url": "ftp://example.com"}, "BAD_PUSH_URL"),
        ({"secret": "secret"}, "BAD_PUSH_SECRET"),
        ({"secret": "whsec_" + base64.b64encode(bytes(23)).decode()}, "BAD_PUSH_SECRET"),
        ({"secret": "whsec_" + base64.b64encode(bytes(65)).decode()}, "BAD_PUSH_SECRET"),
        ({"secret": "whsec_!" + SECRET}, "BAD_PUSH_SECRET"),
        ({"secret": "whsec_ä"}, "BAD_PUSH_SECRET"),
        ({"concurrency": limits.MAX_PUSH_CONCURRENCY_COUNT + 1}, "BAD_PUSH_LIMIT"),
        ({"timeout_ms": limits.MIN_PUSH_TIMEOUT_MS - 1}, "BAD_PUSH_LIMIT"),
        ({"timeout_ms": limits.MAX_PUSH_TIMEOUT_MS + 1}, "BAD_PUSH_LIMIT"),
    ],
)
def test_settings_that_are_refused(settings, code):
    with pytest.raises(InvalidRequest) as caught:
        validate_write(configure(push=settings))
    assert caught.value.code == code
    assert "secret'" not in caught.value.message


def test_a_secret_is_its_key_in_base64():
    assert push.decode_secret(SECRET) == bytes(range(32))
    assert push.encode_secret(bytes(range(32))) == SECRET
    validate_write(configure(push={"url": "https://example.com", "secret": SECRET, "concurrency": 1}))


def test_what_is_not_named_stays():
    database = Database()
    url, other = "https://example.com/a", "https://example.com/b"
    assert isinstance(database.run(configure(push={"url": url, "secret": SECRET, "concurrency": 3})), Accepted)
    assert database.push("mail") == rows.PushRow(url=url, key=bytes(range(32)), concurrency=3)
    first = version(database)
    assert first
    database.run(configure(push={"url": other, "timeout_ms": 2_000}))
    assert database.push("mail") == rows.PushRow(url=other, key=bytes(range(32)), concurrency=3, timeout_ms=2_000)
    assert version(database) > first
    assert database.queue("mail").max_messages_count == 0
    database.run(act(configure={"queue": "mail", "max_messages_count": 7}))
    assert database.push("mail").url == other
    database.run(configure(no_push=True))
    assert database.push("mail") is None
    assert database.queue("mail").max_messages_count == 7


def test_a_failure_that_was_noted_is_forgotten_when_it_is_set_again():
    present = rows.PushRow(url="http://a", key=b"k" * 24, error="refused", failing_since_ms=5)
    assert push.changed(present, kv_pb2.QueuePush(concurrency=2)) == rows.PushRow(
        url="http://a", key=b"k" * 24, concurrency=2
    )


def test_the_first_push_needs_url_and_secret():
    database = Database()
    for settings, code in (({"secret": SECRET}, "PUSH_NOT_CONFIGURED"), ({"url": "http://a"}, "PUSH_SECRET_MISSING")):
        verdict = database.run(configure(push=settings))
        assert isinstance(verdict, Rejected)
        assert verdict.error.code == code
    assert database.push("mail") is None
    assert version(database) == b""


def test_the_version_tells_of_a_removal_and_of_nothing_else():
    database = Database()
    database.run(configure(push={"url": "http://a", "secret": SECRET}))
    set_at = version(database)
    database.enqueue(queue="mail")
    database.run(configure(no_push=True, queue="other"))
    database.run(act(configure={"queue": "mail", "max_messages_count": 9}))
    database.run(act(purge={"queue": "mail", "max_count": 10}))
    assert version(database) == set_at
    database.run(act(remove={"queue": "mail"}))
    assert database.push("mail") is None
    assert version(database) > set_at


def test_keys_tell_the_version_from_a_push():
    assert keys.is_push_key(keys.push_key(1, "mail"))
    assert keys.queue_of_key(keys.push_key(1, "mail")) == "mail"
    assert not keys.is_push_key(keys.PUSH_VERSION_KEY)
    assert not keys.is_push_key(keys.queue_key(1, "mail"))
    start, end = keys.push_bounds(1)
    assert start <= keys.push_key(1, "a") < keys.push_key(1, "z" * 100) < end


def test_a_note_says_why_nothing_is_pushed_until_it_is_taken_back():
    database = Database()
    database.run(act(push_note={"queue": "mail", "error": "no queue"}))
    assert database.push("mail") is None
    database.run(configure(push={"url": "http://a", "secret": SECRET}))
    set_at = version(database)
    database.run(act(push_note={"queue": "mail", "error": "refused"}))
    noted = database.push("mail")
    assert (noted.error, noted.failing_since_ms, noted.url) == ("refused", database.now, "http://a")
    database.now += 1_000
    database.run(act(push_note={"queue": "mail", "error": "refused"}))
    assert database.push("mail") == noted
    database.run(act(push_note={"queue": "mail"}))
    assert database.push("mail") == rows.PushRow(url="http://a", key=bytes(range(32)))
    assert version(database) == set_at
    with pytest.raises(InvalidRequest):
        validate_write(act(push_note={"queue": "mail", "error": "x" * 501}))
