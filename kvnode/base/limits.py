"""Every bound of the product, by name, with its unit in the name.

Nothing in kvnode grows without one of these. Those that a user meets (keys, values, transactions) are
Deno KV's own; the others were chosen for the default topology and say why where it is not plain.
"""

from __future__ import annotations

# What a user meets: Deno KV's limits.
MAX_WRITE_KEY_BYTES = 2_048
MAX_READ_KEY_BYTES = 2_049
MAX_STORED_KEY_BYTES = 2_070  # with the suffix of a versionstamped key
MAX_BOUND_BYTES = MAX_STORED_KEY_BYTES + 1  # of a range: just after any stored key, so that each can end a page
MAX_VALUE_BYTES = 65_536
MAX_READ_RANGES_COUNT = 10
MAX_READ_ENTRIES_COUNT = 1_000
MAX_CHECKS_COUNT = 100
MAX_MUTATIONS_COUNT = 1_000
MAX_TRANSACTION_BYTES = 819_200
MAX_TRANSACTION_KEY_BYTES = 81_920
MAX_RESOLVED_TRANSACTION_BYTES = 1_048_576  # in the log: with what sums make, and values whose expiry alone is set
MAX_WATCHED_KEYS_COUNT = 10
MAX_DELETE_RANGE_KEYS_COUNT = 10_000

# One log.
MAX_ENTRY_TRANSACTIONS_COUNT = 65_536  # the versionstamp has 2 bytes for the order in an entry
MAX_BATCH_TRANSACTIONS_COUNT = 1_024
MAX_BATCH_BYTES = 1_048_576  # a batch closes above this; one large transaction may exceed it
MAX_UNCOMMITTED_BYTES = 64 * 1_048_576
MAX_PROPOSAL_QUEUE_COUNT = 65_536
MAX_PROPOSAL_QUEUE_BYTES = 128 * 1_048_576

# Raft.
TICK_MS = 50
ELECTION_TIMEOUT_TICKS = 20  # 1 s, randomized up to twice this
APPLY_DELAY_MS = 10  # while entries come, what is committed is applied this much later at most
PASSING_APPLY_DELAY_MS = 50  # and entries in which messages only pass through queues, whether more come or not
BATCH_HOLD_MS = 1  # a few writes, or strong reads, wait for more, while a larger batch is under way, so long at most
COMMIT_NOTICE_DELAY_MS = 5  # a leader without an append to carry it tells its followers the commit index after this
HEARTBEAT_TICKS = 2
MAX_INFLIGHT_APPENDS_COUNT = 128
MAX_INFLIGHT_APPEND_BYTES = 16 * 1_048_576
MAX_APPEND_BYTES = 2 * 1_048_576
MAX_PENDING_READS_COUNT = 65_536
MAX_UNAPPLIED_BYTES = 16 * 1_048_576  # handed out as committed, not yet reported as applied
MAX_PROMOTION_LAG_COUNT = 64  # entries that a learner may be behind the commit index when it is promoted

# Time.
MAX_CLOCK_OFFSET_MS = 500
MIN_TICK_ENTRY_INTERVAL_MS = 50
SESSION_TTL_MS = 3_600_000
DEFAULT_OPERATION_TIMEOUT_MS = 15_000
MAX_OPERATION_TIMEOUT_MS = 120_000

# Storage.
SEGMENT_BYTES = 16 * 1_048_576
MAX_SEGMENT_BYTES = 1 << 30  # offsets in a segment take 4 bytes
MAX_INLINE_SYNC_P99_MS = 2.0  # slower than this, the log's fsync leaves the loop for a thread
SYNC_WINDOW_COUNT = 200  # syncs that the moving p99 looks back on
LOG_CACHE_BYTES = 8 * 1_048_576
LOG_RETENTION_BYTES = 256 * 1_048_576
RETENTION_AGE_CHECKS_COUNT = 20  # so often within its age is looked for what is too old
MAX_RETENTION_AGE_CHECK_INTERVAL_MS = 60_000
DURABLE_APPLIED_INTERVAL_MS = 2_000
MAX_READ_TRANSACTION_MS = 1_000
MAX_LOOP_HOLD_MS = 5
MAX_READ_BATCH_COUNT = 128  # small strong reads that share a call
MAX_INLINE_READ_ENTRIES_COUNT = 128  # a read that may return more leaves the loop
MAX_INLINE_READ_BYTES = 1_048_576  # and one that proves to be larger: about 1 ms
MAX_READ_TURN_BYTES = 1_048_576  # read, before the loop has its turn; one read may exceed it
READ_RANGE_BYTES = 8_192  # of values are read in the time that a range takes: about 10 us
READ_ENTRY_BYTES = 2_048  # and an entry of it: about 2.5 us
SNAPSHOT_CHUNK_BYTES = 262_144
MAX_EXPIRED_KEYS_PER_TICK_COUNT = 1_000
STATE_CACHE_BYTES = 16 * 1_048_576  # SQLite's page cache of the connection that applies and serves point reads
STATE_READER_CACHE_BYTES = 2 * 1_048_576
STATE_READERS_COUNT = 2  # read-only connections for counts and large ranges, a thread each
STATE_COMMIT_INTERVAL_MS = 500  # so long may pass between an apply and its commit; a crash applies so much again
MAX_STATE_COMMIT_BYTES = 4 * 1_048_576  # of values in one state transaction
MIN_STATE_COMMIT_ROWS_COUNT = 256
MAX_STATE_COMMIT_ROWS_COUNT = 4_096
STATE_CHECKPOINT_BYTES = 4 * 1_048_576  # of write-ahead log; apply waits about 1.5 ms for each MiB
STATE_WAL_BYTES = 32 * 1_048_576  # above this a checkpoint ends with the log empty; at twice this apply waits for it
SCRUB_PAGE_ROWS_COUNT = 256  # about 1 ms of hashing: what a scrub may hold the interpreter at a time
SNAPSHOT_COPY_PAGES_COUNT = 64  # about 0.3 ms: what a snapshot's copy may hold the state's connection at a time
SNAPSHOT_COPY_PAUSE_MS = 1

# Serving.
MAX_SESSION_MESSAGE_OPERATIONS_COUNT = 4_096
MAX_SESSION_INTAKE_COUNT = MAX_BATCH_TRANSACTIONS_COUNT  # of a message at once, before the loop has its turn
MAX_SESSION_UNANSWERED_COUNT = 65_536
MAX_GRPC_MESSAGE_BYTES = 16 * 1_048_576
MAX_HELD_REQUESTS_COUNT = 65_536
MAX_HELD_REQUEST_BYTES = 128 * 1_048_576
MAX_WATCHES_COUNT = 10_000
MAX_PREFIX_WATCH_PENDING_KEYS_COUNT = 10_000
MAX_PREFIX_WATCH_PENDING_BYTES = 8 * 1_048_576  # all of it is one frame, and has to fit a message
WATCH_PING_INTERVAL_MS = 5_000
MIN_WATCH_PING_INTERVAL_MS = 1_000  # however small the staleness is that a watch allows
MIN_WATCH_AGE_CHECK_MS = 10  # between two looks at whether the state is still new enough for a watch
SHUTDOWN_TIMEOUT_MS = 10_000

# Client.
MAX_CLIENT_TIMEOUT_MS = 30 * 86_400_000  # a client's patience; what it says to a node has 4 bytes
CLIENT_DIAL_TIMEOUT_MS = 1_000
CLIENT_HANG_TIMEOUT_MS = 2_000  # no answer for this long while operations wait: on to the next endpoint
CLIENT_PROBE_AFTER_MS = 400  # nothing heard for this long while operations wait: ask whether the node is alive
CLIENT_PROBE_TIMEOUT_MS = 400  # and no longer than this for the answer
MAX_CLIENT_HANG_TIMEOUT_MS = 16_000  # doubled up to this while no endpoint answers
CLIENT_RETURN_INTERVAL_MS = 5_000  # at an address that it does not prefer, a session looks this often for a better one
CLIENT_RETURN_TIMEOUT_MS = 1_000  # and waits no longer than this for its answer
CLIENT_KEEPALIVE_INTERVAL_MS = 10_000
CLIENT_KEEPALIVE_TIMEOUT_MS = 3_000
CLIENT_BACKOFF_MS = 50
MAX_CLIENT_BACKOFF_MS = 1_000
CLIENT_SWEEP_INTERVAL_MS = 50  # deadlines are kept this exactly
CLIENT_WATCH_SILENCE_MS = 3 * WATCH_PING_INTERVAL_MS
CLIENT_WATCH_BEHIND_MS = WATCH_PING_INTERVAL_MS  # a node that is behind what a watch has shown is left after so long
CLIENT_WATCH_GOES_BACK_MS = 2 * CLIENT_WATCH_SILENCE_MS  # then no node is further: the watch shows what there is
CLIENT_SESSION_IDLE_MS = SESSION_TTL_MS // 2  # after this a client takes a fresh id rather than risk an expired one
MAX_CLIENT_UNANSWERED_BYTES = 64 * 1_048_576
MAX_CLIENT_MESSAGE_BYTES = 1_048_576  # a message closes above this; one large operation may exceed it
MAX_CLIENT_FLIGHTS_COUNT = 1  # messages of a session wholly unanswered; what comes then gathers for the next one
CLIENT_GATHER_MS = 5  # and no longer than this
MAX_CLIENT_UNARY_READS_COUNT = 8  # a client that never writes opens a session above this
DEFAULT_LIST_BATCH_COUNT = 100
MAX_DEFAULT_LIST_BATCH_COUNT = 500  # of a batch size derived from a limit

# Between nodes.
MAX_PEER_QUEUE_COUNT = 16_384  # Raft messages that wait for one peer's stream; above it they are dropped
MAX_PEER_QUEUE_BYTES = 64 * 1_048_576
MAX_PEER_BATCH_BYTES = 4 * 1_048_576  # a batch closes above this; one large message may exceed it
MAX_FORWARD_QUEUE_COUNT = MAX_HELD_REQUESTS_COUNT
MAX_FORWARD_QUEUE_BYTES = MAX_HELD_REQUEST_BYTES
MAX_FORWARD_MESSAGE_OPERATIONS_COUNT = MAX_BATCH_TRANSACTIONS_COUNT  # what one message brings is one piece of work
PEER_CONNECT_TIMEOUT_MS = 2_000
PEER_LANE_TAIL_MS = 200  # the last answers come by a lane whose stream has ended already
MIN_PEER_BACKOFF_MS = 50
INTRODUCTION_LIFETIME_MS = 30_000  # so long a peer that our membership does not know is answered after its last word
MAX_REMOVED_MEMBERS_COUNT = 256  # whose ids a membership remembers, 20 bytes each; the first one makes room
MAX_INTRODUCED_COUNT = 16  # such peers; the most silent one makes room
MAX_PEER_BACKOFF_MS = 500
PEER_CLOCK_SAMPLE_INTERVAL_MS = 1_000
PEER_SILENCE_TIMEOUT_MS = 10_000  # a peer whose loop answers no clock sample for this long is taken for stuck
SELF_JOIN_RETRY_MS = 1_000  # between two attempts of a node that asks to be taken in
SELF_JOIN_TIMEOUT_MS = 10_000  # for one of them: an adoption and a commit
PEER_CALL_TIMEOUT_MS = 5_000  # identify and adopt

# The changelog, by which replicas follow.
CHANGELOG_NOTICE_INTERVAL_MS = 100  # a source with nothing to send says so this often
CHANGELOG_PIECE_INTERVAL_MS = 20  # between two pieces to a replica that has all but what came meanwhile
CHANGELOG_SILENCE_MS = 1_000  # a source that says nothing for this long is left for another one
CHANGELOG_RETRY_MS = 200  # between two rounds of attempts when no source answers
CHANGELOG_BETTER_INTERVAL_MS = 5_000  # a replica that does not follow its best source tries that again this often
CHANGELOG_STALE_MS = 3_000  # a source whose news are older is left, if another one answers
CHANGELOG_SHUN_MS = 10_000  # for how long it is then tried last
CHANGELOG_ACKNOWLEDGE_INTERVAL_MS = 20
NEIGHBOUR_SNAPSHOT_WAIT_MS = 5_000  # a replica leaves a snapshot to a neighbour that is not heard to fetch it so long
NEIGHBOUR_SNAPSHOT_PROBE_MS = 500  # between two looks at whether a neighbour has it
REGION_SILENT_MS = 3_000  # a region of which nothing was heard for this long may be gone, and status says so
HELD_INTERVAL_TICKS = 2  # between two words of a voter to the leader about how far the replicas are that follow it
MAX_HELD_MARKS_COUNT = 256
MAX_UNREPLICATED_MS = 45_000
MAX_CHANGELOG_PIECE_BYTES = 524_288  # of entries' data in one message; one entry may exceed it
MAX_CHANGELOG_UNACKNOWLEDGED_BYTES = 8 * 1_048_576  # under way to one replica: 40 MB/s at a round trip of 200 ms
MIN_COMPRESSED_CHANGELOG_BYTES = 1_024  # smaller pieces are sent as they are
# Failovers between regions.
FAILOVER_ASK_TIMEOUT_MS = 10_000  # of one question that may take a while
FAILOVER_INSPECT_TIMEOUT_MS = 1_500  # who does not answer within this counts as gone
FAILOVER_PROMISE_TURN_MS = 1_000  # who has not promised within this is waited for while the next one is asked already
FAILOVER_EXCLUSIVE_MS = 10_000  # after a promise no other failover is let in for so long
FAILOVER_TAKE_OVER_TIMEOUT_MS = 15_000  # for the new voters to elect a leader
MAX_FAILOVER_TAIL_BYTES = 1_048_576  # of entries in one message
MAX_FAILOVER_LAG_MS = 60_000  # what a forced failover may lose without being forced twice
MAX_MOVE_LAG_COUNT = 2_000  # entries by which the target of a planned move may lag when the seal is written
MOVE_NEXT_LEADER_TIMEOUT_MS = 15_000  # a move goes on with the next leader for so long, while no seal is committed
MOVE_CATCH_UP_TIMEOUT_MS = 15_000  # for it to come so near; then nothing is changed
PRIMARY_LEASE_MS = 10_000  # the primary answers for so long after a majority of all nodes was asked; see node/promotion
MAX_PRIMARY_LEASE_MS = 300_000  # for so long nobody could be promoted, nor a node that starts vote
PRIMARY_LEASE_MARGIN_PARTS = 20  # one part in so many is left off at the leader: clocks may run apart by 5 %
LEADER_LEASE_MARGIN_PARTS = 20  # likewise of the leader lease; see node/leader_lease.py
MIN_LEASE_ELECTIONS_COUNT = 2  # a lease is as long as so many elections at the longest wait, or any would promote
BALLOT_INTERVAL_MS = 500  # about so often a node that could promote its region looks whether it should
MAX_BALLOT_INTERVAL_FACTOR = 6  # by which that grows while it finds that it should not
BALLOT_TURN_MS = 2_000  # a node that is not the first choice waits so long for each that is before it
RENEWAL_AFTER_MS = 15_000  # an epoch that somebody promised and nobody began is passed over after so long
READ_WAIT_HERE_MS = 500  # a read waits so long for its versionstamp before another node is asked as well
MAX_ANSWER_MARGIN_MS = 400  # a tick, and the way from one region to another and back
READ_ONWARD_TIMEOUT_MS = 1_000  # for one other node to answer a read that this one's state is too old for
MAX_READ_ONWARD_ATTEMPTS_COUNT = 3  # others that are asked, one after another
MAX_READS_ONWARD_COUNT = MAX_HELD_REQUESTS_COUNT
MAX_SNAPSHOT_ATTEMPTS_COUNT = 5  # a broken transfer is resumed this often
SNAPSHOT_STALL_TIMEOUT_MS = 30_000
MAX_SNAPSHOT_INSTALL_MS = 600_000  # after its last byte
NEIGHBOUR_SNAPSHOT_STALL_MS = 2 * SNAPSHOT_STALL_TIMEOUT_MS  # who sends to the neighbour notices, and resumes
MAX_PREFIX_WATCHES_COUNT = 1_000  # each costs two bisections per applied run
HEALTH_INTERVAL_MS = 250

# Request ids.
SESSION_REFRESH_MS = (
    225_000  # a session's expiry moves in steps of this, so that few of its writes touch the expiry index
)
MAX_SESSIONS_COUNT = 65_536  # above it whichever has been idle longest is closed early
MIN_EVICTED_SESSION_IDLE_MS = 60_000  # and none that wrote more recently
OUTCOME_PRUNE_SEQUENCES_COUNT = 256  # outcomes below lowest_unanswered are deleted in steps of this many sequences
SCAN_PAGE_COUNT = 1_000
MAX_SESSION_RESULT_BYTES = 32 * 1_048_576  # results of one stream that wait to be sent; above it nothing is read on
RESULT_HEADROOM_BYTES = 4_096  # of framing around the largest single result

# Import.
IMPORT_BATCH_ROWS_COUNT = 500  # in one transaction; MAX_CHECKS_COUNT where each row has a check
IMPORT_BATCH_BYTES = 262_144  # a transaction closes above this; one large row may exceed it
IMPORT_INFLIGHT_COUNT = 8  # transactions that are on their way at once
MAX_IMPORT_LINE_BYTES = 16 * 1_048_576
IMPORT_SAVE_INTERVAL_MS = 500  # between two notes of how far an import is

# Databases and tokens.
HARD_MAX_VALUE_BYTES = 786_432  # that a database may allow: with a key it fits MAX_TRANSACTION_BYTES
MAX_DATABASES_COUNT = 1_000
MAX_TOKENS_COUNT = 10_000
MAX_DATABASE_NAME_CHARACTERS_COUNT = 63
MAX_TOKEN_LABEL_CHARACTERS_COUNT = 200
MIN_STATIC_TOKEN_CHARACTERS_COUNT = 12  # denokv's own rule
DATA_TOKEN_LIFE_MS = 1_800_000  # clients of KV Connect fetch another when less than 5 minutes are left
SIGNING_KEY_ROTATION_MS = 86_400_000
SIGNING_KEY_ACTIVATION_MS = 60_000  # a fresh key signs only when every node that answers has it
SIGNING_KEY_OVERLAP_MS = SIGNING_KEY_ACTIVATION_MS + 2 * DATA_TOKEN_LIFE_MS  # an old key verifies beside its successor
EXPIRED_TOKEN_RETENTION_MS = 30 * 86_400_000  # shown as expired for so long, then removed
MAX_VERIFIED_TOKENS_COUNT = 16_384  # data tokens whose signature a node remembers
MAX_DIRECTORY_ATTEMPTS_COUNT = 20  # of a change that another one overtakes
DIRECTORY_DUTY_INTERVAL_MS = 500
DIRECTORY_CHECK_INTERVAL_MS = 500  # whether the node that a gateway follows still has a leader
PURGE_CHUNK_KEYS_COUNT = 500  # removed by one entry: about 5 ms of apply
PURGE_PROGRESS_CHUNKS_COUNT = 10  # chunks between two reports of progress
PURGE_PAUSE_MS = 20  # between two chunks, so that a purge never takes more than a part of the log

# HTTP (KV Connect and the ops port).
HTTP_BACKLOG_COUNT = 1_024  # connections that the kernel holds until they are accepted
MAX_HTTP_CONNECTIONS_COUNT = 10_000  # idle ones included; beyond, new ones wait
HTTP_HEADER_TIMEOUT_MS = 30_000
HTTP_BODY_TIMEOUT_MS = 15_000
MAX_HTTP_HEADER_BYTES = 65_536
MAX_KNOWN_HEADS_COUNT = 512  # heads of HTTP/1.1 requests that are not parsed again, of the bytes below at most
MAX_KNOWN_HEAD_BYTES = 2_048
MAX_KNOWN_BLOCKS_BYTES = 65_536  # of heads of HTTP/2 requests that are not decoded again, a connection
MAX_HTTP_BODIES_BYTES = 67_108_864  # of all bodies that are being read at one time
HTTP2_CONNECTION_WINDOW_BYTES = 4_194_304
HTTP2_STREAM_WINDOW_BYTES = 1_048_576
MAX_HTTP2_STREAMS_COUNT = 1_000
HTTP2_KEEPALIVE_MS = 30_000
HTTP2_UNCOUNTED_BYTES = 16_384  # a response up to here is not counted as unread: a connection has few streams
MAX_HTTP2_UNREAD_CHUNKS_BYTES = 65_536  # of a stream of chunks; above, the next one is not made
MAX_HTTP2_UNREAD_CONNECTION_BYTES = 67_108_864  # of whole responses to one connection, beside a lone one of any size
MAX_HTTP2_UNREAD_BYTES = 268_435_456  # of all connections
MAX_CONNECT_BODY_BYTES = 1_048_576
CONNECT_WHOLE_BYTES = 1_048_576  # of values in an answer that is made at once: about 1 ms; a larger one in pieces
CONNECT_PIECE_BYTES = 131_072  # of such a one; it may be larger by an entry
MAX_METADATA_BODY_BYTES = 4_096
HTTP_READ_AHEAD_BYTES = 65_536  # of a body that its handler has not asked for yet
HTTP_SEND_TIMEOUT_MS = 60_000  # without the client reading any of its answer
HTTP_LINGER_MS = 2_000  # what still comes in after an early answer is thrown away for so long
CONNECT_HOLD_TIMEOUT_MS = 30_000  # a request of KV Connect waits so long for a leader; then 503
ENQUEUE_GRACE_MS = 1_000  # beyond what the client of an enqueue over HTTP allows, its outcome is looked for so long
GATEWAY_LEARN_TIMEOUT_MS = 5_000  # a gateway waits so long for news of the directory before it refuses
TROUBLE_REMINDER_MS = 60_000  # between two lines of a gateway's log about one outage
SESSION_LEAVE_INTERVAL_MS = 1_000  # at which a gateway looks whether the session of a deleted database is answered

# Queues.
MAX_QUEUE_MESSAGES_COUNT = 100_000  # undelivered, by default
HARD_MAX_QUEUE_MESSAGES_COUNT = 100_000_000  # that a queue may be set to
MAX_QUEUES_COUNT = 1_000  # of one database
MAX_QUEUE_NAME_BYTES = 100
MAX_QUEUE_CONSUMER_BYTES = 100  # of the name that a consumer gives itself
MAX_QUEUE_DELAY_MS = 30 * 86_400_000
MAX_CLIENT_CLOCK_OFFSET_MS = 60_000  # by which a client's clock may be ahead where it names a point in time
DEFAULT_BACKOFF_INTERVALS_MS = (100, 1_000, 5_000, 30_000, 60_000)
MAX_BACKOFF_INTERVALS_COUNT = 10
MAX_BACKOFF_INTERVAL_MS = 3_600_000
MAX_KEYS_IF_UNDELIVERED_COUNT = 10
DEFAULT_QUEUE_LEASE_MS = 10_000
MIN_QUEUE_LEASE_MS = 1_000
MAX_QUEUE_LEASE_MS = 600_000
MAX_QUEUE_TOUCHED_COUNT = 500  # messages that the queue actions of one transaction may take, return or delete
MAX_QUEUE_ACTION_BYTES = 524_288  # of payloads that one transaction claims or requeues; one large may exceed it
MAX_QUEUE_DEAD_LETTERS_COUNT = 100_000  # of one queue; above it the oldest make room
MAX_QUEUE_LOSSES_COUNT = 10  # leases of a message that may end without a word before each counts as a failure
QUEUE_SCAN_MARGIN_COUNT = 64  # read beyond what is wanted: what entries in flight have taken is passed over
MAX_LEASES_EXTENDED_PER_ENTRY_COUNT = 5_000  # by a new leader
MAX_QUEUE_PULLS_COUNT = 16_384  # that wait at a leader
QUEUE_PULL_WAIT_MS = 20_000
QUEUE_PULL_GRACE_MS = 15_000  # beyond that, for a leader to be found and the answer to come back
QUEUE_LEFT_OVER_MS = 200  # claimed messages wait so long at the leader for the next pull, then they are given back
QUEUE_EMPTY_CLAIM_PAUSE_MS = 5  # after a claim that found nothing, others having been quicker
MAX_QUEUE_TIMER_MS = 60_000  # a timer for what is due later than this is set again
MAX_CONSUMER_IN_FLIGHT_COUNT = 1_000  # messages that one listener holds, and credit it has given
CONSUMER_RETRY_MS = 100
MAX_SETTLEMENTS_COUNT = 2  # writes of acks under way for one database; what comes meanwhile gathers for the next
SETTLE_HOLD_MS = 8  # acks wait so long at most for others that may be about to come
MAX_PEEK_COUNT = 100
MAX_CRONS_COUNT = 1_000  # of one database
MAX_CRON_NAME_BYTES = 64
MAX_CRON_SCHEDULE_BYTES = 256
CRON_RETRY_MS = 1_000  # a tick whose message finds no room in its queue is tried again after so long
MAX_LISTENER_UNSENT_BYTES = 1_048_576  # above this a listener that does not read is sent no more messages
LISTEN_PING_INTERVAL_MS = 5_000
CLIENT_LISTEN_SILENCE_MS = 3 * LISTEN_PING_INTERVAL_MS
LISTENER_CLOSE_TIMEOUT_MS = 5_000
MAX_CLIENT_LISTEN_PACE_MS = 1_000  # between requests of a listener whose token's rate was exceeded
CLIENT_LISTEN_PACE_KEPT_MS = 300_000  # then half of it is tried
MAX_LISTEN_BODY_BYTES = 65_536  # over HTTP: 1,000 leases that are held take half of it
MAX_SETTLE_BODY_BYTES = 131_072
MAX_ENQUEUE_BODY_BYTES = 1_572_864  # a transaction's payloads in base64, and what is around them
MAX_SETTLING_LEASES_COUNT = 65_536  # that came over HTTP and are not settled yet, of one node
LISTENERS_STOP_TIMEOUT_MS = 1_000  # for telling listeners over HTTP that the node stops

# Push of queues to a URL.
MAX_PUSH_URL_BYTES = 2_048
MIN_PUSH_KEY_BYTES = 24  # of the signatures; both bounds are those of Standard Webhooks
MAX_PUSH_KEY_BYTES = 64
DEFAULT_PUSH_CONCURRENCY_COUNT = 10
MAX_PUSH_CONCURRENCY_COUNT = 100
DEFAULT_PUSH_TIMEOUT_MS = 15_000
MIN_PUSH_TIMEOUT_MS = 1_000
MAX_PUSH_TIMEOUT_MS = 300_000
PUSH_LEASE_MS = 5_000  # extended while a request runs; so long after a crash of the leader its messages come again
MAX_PUSH_RETRY_AFTER_MS = 3_600_000  # of a receiver's Retry-After
MAX_PUSH_RESPONSE_HEAD_BYTES = 65_536
MAX_PUSH_RESPONSE_BODY_BYTES = 65_536  # read to use the connection again; behind more it is closed
PUSH_BODY_TIMEOUT_MS = 2_000  # beyond the head of the answer, which has said all
PUSH_IDLE_MS = 4_000  # for so long a connection is kept for the next request
PUSH_RESOLVE_TIMEOUT_MS = 5_000
MIN_PUSH_PAUSE_MS = 1_000  # of a pusher whose host may not be called; doubled up to the next
MAX_PUSH_PAUSE_MS = 60_000
MAX_PUSHERS_COUNT = 1_000  # queues that a leader pushes
MAX_PUSH_REQUESTS_COUNT = 1_000  # of all queues at one time
PUSH_DUTY_INTERVAL_MS = 200  # at which a node looks whether it leads
PUSH_NOTE_INTERVAL_MS = 2_000  # at which a queue's row is told whether anything is taken
PUSH_CLOSE_TIMEOUT_MS = 1_000  # for requests under way when the node stops
MAX_PUSH_ERROR_CHARACTERS_COUNT = 500
