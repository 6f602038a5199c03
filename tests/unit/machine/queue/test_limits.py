"""Each limit of a queue's message and action: its code, and Deno's sentence in front."""

import pytest

from kvnode.base import limits
from kvnode.base.errors import InvalidRequest
from kvnode.machine.validate import validate_write
from kvnode.proto.kv.v1 import kv_pb2

LEASE = bytes(12)


def enqueue(data=b"\xff\x0f0", encoding=1, **more):
    made = kv_pb2.AtomicWriteRequest()
    made.enqueues.add(**more)
    made.enqueues[0].payload.data, made.enqueues[0].payload.encoding = data, encoding
    return made


def act(**action):
    return kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(**action)])


TOO_LATE = limits.MAX_QUEUE_DELAY_MS + 1


@pytest.mark.parametrize(
    ("request_", "code", "sentence"),
    [
        (enqueue(b"x" * 65_537), "PAYLOAD_TOO_LARGE", "enqueue payload too large (max 65536 bytes)"),
        (enqueue(encoding=0), "UNKNOWN_ENCODING", "The value encoding 0 is unknown."),
        (enqueue(b"x", encoding=2), "LE64_NOT_8_BYTES", "Invalid mutation kind or arguments."),
        (enqueue(delay_ms=TOO_LATE), "BAD_DEADLINE", "Invalid mutation enqueue deadline."),
        (enqueue(delay_ms=-1), "BAD_DEADLINE", "Invalid mutation enqueue deadline."),
        (enqueue(delay_ms=1, due_at_ms=1), "BAD_DEADLINE", "Invalid mutation enqueue deadline."),
        (
            enqueue(keys_if_undelivered=[b"k"] * 11),
            "TOO_MANY_KEYS_IF_UNDELIVERED",
            "Too many dead letter keys for a single queue message.",
        ),
        (enqueue(keys_if_undelivered=[b""]), "EMPTY_KEY", "key cannot be empty"),
        (enqueue(keys_if_undelivered=[b"k" * 2_049]), "KEY_TOO_LARGE", "A key exceeds the key size limit."),
        (
            enqueue(backoff_intervals_ms=[1] * 11),
            "TOO_MANY_BACKOFF_INTERVALS",
            "Too many backoff intervals for a single queue message.",
        ),
        (
            enqueue(backoff_intervals_ms=[3_600_001]),
            "BACKOFF_TOO_LONG",
            "A backoff interval exceeds the maximum allowed backoff interval.",
        ),
        (enqueue(queue="no spaces"), "BAD_QUEUE_NAME", "A queue cannot be called"),
        (enqueue(queue="a" * 101), "BAD_QUEUE_NAME", "A queue cannot be called"),
        (act(), "UNKNOWN_QUEUE_ACTION", "A queue action of this write is empty"),
        (act(ack={"lease": b"short"}), "BAD_LEASE", "A lease is 12 bytes"),
        (act(extend={"lease": LEASE, "lease_ms": 999}), "BAD_LEASE_TIME", "A lease lasts"),
        (act(claim={"max_count": 1, "lease_ms": 600_001}), "BAD_LEASE_TIME", "A lease lasts"),
        (act(claim={}), "BAD_COUNT", "A queue action names the count 0"),
        (act(claim={"max_count": 501}), "BAD_COUNT", "A queue action names the count 501"),
        (act(claim={"max_count": 1, "consumer": "c" * 101}), "CONSUMER_NAME_TOO_LONG", "A consumer's name has"),
        (act(nack={"lease": LEASE, "delay_ms": TOO_LATE}), "BAD_DEADLINE", "Invalid mutation enqueue deadline."),
        (act(configure={"max_messages_count": 10**9}), "BAD_COUNT", "A queue action names the count"),
        (
            kv_pb2.AtomicWriteRequest(actions=[kv_pb2.QueueAction(claim={"max_count": 300})] * 2),
            "TOO_MANY_QUEUE_ACTIONS",
            "The queue actions of this write may touch 600 messages",
        ),
    ],
)
def test_what_is_refused(request_, code, sentence):
    with pytest.raises(InvalidRequest) as refused:
        validate_write(request_)
    assert refused.value.code == code
    assert refused.value.message.startswith(sentence)


def test_what_is_just_within_the_limits():
    validate_write(
        enqueue(
            b"x" * 65_536,
            delay_ms=limits.MAX_QUEUE_DELAY_MS,
            keys_if_undelivered=[b"k" * 2_048] * 10,
            backoff_intervals_ms=[3_600_000] * 10,
            queue="mail:out/eu-1",
        )
    )
    validate_write(act(requeue={"dead_letter": LEASE}))
    validate_write(act(claim={"max_count": 500}))


def test_messages_count_with_the_mutations_and_their_bytes_with_the_transaction():
    request = enqueue()
    request.mutations.extend([kv_pb2.Mutation(type=2, key=b"k")] * 1_000)
    with pytest.raises(InvalidRequest, match=r"Too many mutations / enqueues included in atomic write. It has 1001"):
        validate_write(request)
    request = kv_pb2.AtomicWriteRequest(enqueues=list(enqueue(b"x" * 65_536).enqueues) * 13)
    with pytest.raises(InvalidRequest, match="The total size of the atomic write is too large"):
        validate_write(request)
