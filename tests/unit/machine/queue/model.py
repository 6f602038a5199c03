"""A naive set of queues: dicts, one transaction after the other. What the machine must agree with."""

import copy
from dataclasses import dataclass, field

from kvnode.base import limits

RETRIES = (100, 1_000, 5_000, 30_000, 60_000)
MINUTE = 60_000


class Failed(Exception):
    """The transaction's error code."""


@dataclass
class Message:
    id: bytes
    queue: str
    payload: bytes
    keys: tuple
    schedule: tuple
    deliveries: int = 0
    failures: int = 0
    losses: int = 0
    cron: tuple = ("", 0)  # (name, tick) of the cron that sent it


@dataclass
class Queue:
    acknowledged: int = 0
    enqueued: int = 0
    claimed: int = 0
    dead_total: int = 0
    dropped: int = 0
    bound: int = 0


@dataclass
class Cron:
    schedule: str
    next: int
    look: int
    message: object = None
    overlap: bool = False
    last_id: bytes = b""
    fired: int = 0
    skipped: int = 0
    missed: int = 0
    blocked: str = ""


def ticks(schedule, at):
    """Whether that minute is one of "* * * * *" or "*/n * * * *"."""
    step = schedule.split()[0].removeprefix("*/")
    return at % MINUTE == 0 and at // MINUTE % 60 % (1 if step == "*" else int(step)) == 0


def next_tick(schedule, at):
    at = (at // MINUTE + 1) * MINUTE
    while not ticks(schedule, at):
        at += MINUTE
    return at


@dataclass
class World:
    queues: dict = field(default_factory=dict)
    waiting: dict = field(default_factory=dict)  # (queue, due, id): Message
    arrived: dict = field(default_factory=dict)  # keys of these that were due when they began to wait
    leases: dict = field(default_factory=dict)  # lease id: [Message, expire_at_ms]
    dead: dict = field(default_factory=dict)  # (queue, dead id): Message
    undelivered: dict = field(default_factory=dict)  # user key: payload
    crons: dict = field(default_factory=dict)
    fired: list = field(default_factory=list)  # (name, tick) of every firing


class Model:
    def __init__(self):
        self.world = World()
        self.applied = World()  # as of the applied index: only there does a purge or requeue look for rows

    def transaction(self, request, stamp, now):
        """The results, or the code of the error that it fails with; a failure changes nothing."""
        before = copy.deepcopy(self.world)
        self.stamp, self.now, self.number, self.lease_number = stamp, now, len(request.enqueues), 0
        try:
            results = [self.act(action) for action in request.actions]
            for position, enqueue in enumerate(request.enqueues):
                self.enqueue(enqueue, position)
            return results
        except Failed as failure:
            self.world = before
            return str(failure)

    def late_claim(self, action, stamp, now):
        """A claim that is made last in an entry."""
        self.stamp, self.now, self.lease_number = stamp, now, 0
        return self.claim(action)

    def tick(self, due, stamp, now):
        """`due`: leases, and crons by their names, in the order in which the state lists them."""
        self.stamp, self.now, self.number = stamp, now, 0
        for lease_id, expire_at_ms in due:
            if isinstance(lease_id, str):
                cron = self.world.crons.get(lease_id)
                if cron is not None and cron.look == expire_at_ms <= now:
                    self.fire(lease_id, cron)
                continue
            lease = self.world.leases.get(lease_id)
            if lease is not None and lease[1] == expire_at_ms <= now:
                self.lose(lease_id)

    def extend_all(self, last, gap):
        for lease in self.world.leases.values():
            if lease[1] > last:
                lease[1] += gap

    def queue(self, name):
        return self.world.queues.setdefault(name or "default", Queue())

    def undelivered_count(self, name):
        waiting = sum(1 for queue, _, _ in self.world.waiting if queue == name)
        return waiting + sum(1 for message, _ in self.world.leases.values() if message.queue == name)

    def id(self, number):
        return self.stamp + number.to_bytes(2, "big")

    def add(self, message, due):
        if self.full(message.queue):
            raise Failed("QUEUE_FULL")
        self.wait(message, due)
        self.queue(message.queue).enqueued += 1

    def full(self, name):
        return self.undelivered_count(name) >= (self.queue(name).bound or limits.MAX_QUEUE_MESSAGES_COUNT)

    def wait(self, message, due):
        key = message.queue, due, message.id
        self.world.waiting[key] = message
        if due <= self.now:
            self.world.arrived[key] = None

    def enqueue(self, request, position):
        due = max(self.now, request.due_at_ms) if request.due_at_ms else self.now + request.delay_ms
        self.add(self.made(request, self.id(position)), due)

    def act(self, action):
        kind = action.WhichOneof("action")
        named = getattr(action, kind)
        if kind in ("ack", "nack", "extend", "release"):
            lease = self.world.leases.get(named.lease)
            if lease is None or lease[1] <= self.now:
                if action.skip_if_lost:
                    return "lost"
                raise Failed("LEASE_LOST")
            getattr(self, kind)(named)
            return None
        return getattr(self, kind)(named)

    def claim(self, action):
        name = action.queue or "default"
        found = []
        for key in sorted(self.world.waiting):
            if len(found) == action.max_count:
                break
            seen = key in self.applied.waiting or key in self.world.arrived
            if key[0] == name and key[1] <= self.now and seen:
                message = self.world.waiting.pop(key)
                message.deliveries += 1
                lease_id = self.id(self.lease_number)
                self.lease_number += 1
                self.world.leases[lease_id] = [message, self.now + (action.lease_ms or 10_000)]
                self.queue(name).claimed += 1
                found.append((message.id, lease_id, message.payload, message.deliveries, key[1], *message.cron))
        return found

    def ack(self, action):
        message, _ = self.world.leases.pop(action.lease)
        self.queue(message.queue).acknowledged += 1

    def nack(self, action):
        message, _ = self.world.leases.pop(action.lease)
        self.fail(message, action.delay_ms if action.HasField("delay_ms") else None)

    def fail(self, message, delay):
        message.failures += 1
        if message.failures > len(message.schedule):
            self.die(message)
            return
        due = self.now + (message.schedule[message.failures - 1] if delay is None else delay)
        self.wait(message, due)

    def release(self, action):
        if not action.unseen:
            self.lose(action.lease)
            return
        message, _ = self.world.leases.pop(action.lease)
        message.deliveries -= 1
        self.wait(message, self.now)

    def lose(self, lease_id):
        message, _ = self.world.leases.pop(lease_id)
        message.losses += 1
        if message.losses > limits.MAX_QUEUE_LOSSES_COUNT:
            self.fail(message, None)
        else:
            self.wait(message, self.now)

    def extend(self, action):
        until = self.now + (action.lease_ms or 10_000)
        lease = self.world.leases[action.lease]
        lease[1] = max(until, lease[1]) if action.never_sooner else until

    def die(self, message):
        for key in message.keys:
            self.world.undelivered[key] = message.payload
        queue = self.queue(message.queue)
        if sum(1 for name, _ in self.world.dead if name == message.queue) >= limits.MAX_QUEUE_DEAD_LETTERS_COUNT:
            for oldest in self.dead_letters(message.queue, 1):
                del self.world.dead[oldest]
                queue.dropped += 1
        self.world.dead[message.queue, self.id(self.number)] = message
        self.number += 1
        queue.dead_total += 1

    def dead_letters(self, name, count):
        found = [key for key in sorted(self.applied.dead) if key[0] == name and key in self.world.dead]
        return found[:count]

    def chosen(self, action):
        name = action.queue or "default"
        if not action.dead_letter:
            return self.dead_letters(name, action.max_count)
        if (name, action.dead_letter) not in self.world.dead:
            raise Failed("DEAD_LETTER_NOT_FOUND")
        return [(name, action.dead_letter)]

    def requeue(self, action):
        count = 0
        for key in self.chosen(action):
            if count and self.full(key[0]):
                break
            dead = self.world.dead.pop(key)
            fresh = Message(self.id(self.number), dead.queue, dead.payload, dead.keys, dead.schedule, cron=dead.cron)
            self.number += 1
            self.add(fresh, self.now)
            count += 1
        return count

    def purge(self, action):
        if action.dead_letters or action.dead_letter:
            chosen = self.chosen(action)
            for key in chosen:
                del self.world.dead[key]
            return len(chosen)
        name = action.queue or "default"
        found = [key for key in sorted(self.applied.waiting) if key[0] == name and key in self.world.waiting]
        for key in found[: action.max_count]:
            del self.world.waiting[key]
        return len(found[: action.max_count])

    def configure(self, action):
        self.queue(action.queue).bound = action.max_messages_count

    def remove(self, action):
        name = action.queue or "default"
        if self.undelivered_count(name) or any(queue == name for queue, _ in self.world.dead):
            raise Failed("QUEUE_NOT_EMPTY")
        self.world.queues.pop(name, None)

    def made(self, request, message_id):
        schedule = () if request.no_retries else tuple(request.backoff_intervals_ms) or RETRIES
        keys = tuple(request.keys_if_undelivered)
        return Message(message_id, request.queue or "default", request.payload.data, keys, schedule)

    def cron_set(self, action):
        cron = self.world.crons.get(action.name)
        if cron is not None and action.must_be_new:
            raise Failed("CRON_EXISTS")
        self.queue(action.message.queue)
        if cron is None or cron.schedule != action.schedule:
            first = next_tick(action.schedule, self.now)
            kept = cron or Cron(action.schedule, first, first)
            kept.schedule, kept.next, kept.look, kept.blocked = action.schedule, first, first, ""
            cron = self.world.crons[action.name] = kept
        cron.message, cron.overlap = action.message, action.allow_overlap
        return cron.next

    def cron_delete(self, action):
        if self.world.crons.pop(action.name, None) is None:
            raise Failed("CRON_NOT_FOUND")

    def fire(self, name, cron):
        passed = [at for at in range(cron.next, self.now + 1, MINUTE) if ticks(cron.schedule, at)]
        alive = [m.id for m in self.world.waiting.values()] + [m.id for m, _ in self.world.leases.values()]
        if cron.overlap or cron.last_id not in alive:
            message = self.made(cron.message, self.id(self.number))
            message.cron = (name, passed[-1])
            try:
                self.add(message, self.now)
            except Failed as failure:
                cron.blocked, cron.look = str(failure), self.now + limits.CRON_RETRY_MS
                return
            self.number += 1
            self.world.fired.append(message.cron)
            cron.last_id = message.id
            cron.fired += 1
        else:
            cron.skipped += 1
        cron.blocked = ""
        cron.missed += len(passed) - 1
        cron.next = cron.look = next_tick(cron.schedule, self.now)
