-- migration: 1 first
-- One shard: the same tables and rules as in a file, in a schema of their own; the schema's name
-- takes the place of "shard". What a process with a file of its own may keep in memory stands in
-- tables here, since several gateways may share a shard: flow, backlog, flight, gateway.

CREATE TABLE shard.client (
    number        bigint PRIMARY KEY,
    id            bytea NOT NULL UNIQUE CHECK (length(id) = 16),
    slot          integer NOT NULL CHECK (slot BETWEEN 0 AND 4095),
    name          text NOT NULL,
    weight        integer NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    created_at_ms bigint NOT NULL,
    credits_cents bigint NOT NULL CHECK (credits_cents >= 0),
    held_cents    bigint NOT NULL CHECK (held_cents >= 0),
    charged_cents bigint NOT NULL CHECK (charged_cents >= 0),
    sequence      bigint NOT NULL CHECK (sequence >= 0),
    waiting       bigint NOT NULL CHECK (waiting >= 0),
    paused        smallint NOT NULL CHECK (paused IN (0, 1))
) WITH (fillfactor = 50);

-- kind: 0 topup, 1 deduct, 2 hold, 3 capture, 4 release, 5 carried_forward
CREATE TABLE shard.entry (
    client        bigint NOT NULL REFERENCES shard.client (number),
    sequence      bigint NOT NULL CHECK (sequence > 0),
    kind          smallint NOT NULL CHECK (kind BETWEEN 0 AND 5),
    at_ms         bigint NOT NULL,
    amount_cents  bigint NOT NULL,
    held_cents    bigint NOT NULL,
    balance_cents bigint NOT NULL CHECK (balance_cents >= 0),
    message       bigint,
    note          text,
    PRIMARY KEY (client, sequence),
    CHECK (kind <> 0 OR (amount_cents > 0 AND held_cents = 0)),
    CHECK (kind <> 1 OR (amount_cents < 0 AND held_cents = 0)),
    CHECK (kind <> 2 OR (amount_cents <= 0 AND held_cents = -amount_cents AND message IS NOT NULL)),
    CHECK (kind <> 3 OR (amount_cents = 0 AND held_cents < 0 AND message IS NOT NULL)),
    CHECK (kind <> 4 OR (amount_cents > 0 AND held_cents = -amount_cents AND message IS NOT NULL))
);

-- status: 0 SCHEDULED, 1 QUEUED, 2 SENDING, 3 SENT, 4 UNCERTAIN, 5 FAILED_TEMP,
--         10 DELIVERED, 11 FAILED_PERM, 12 EXPIRED, 13 CANCELLED, 14 UNKNOWN (10 and up are final)
-- No index knows the status: most changes of a row then touch no index at all.
CREATE TABLE shard.message (
    number              bigint PRIMARY KEY,
    id                  bytea NOT NULL CHECK (length(id) = 16),
    client              bigint NOT NULL REFERENCES shard.client (number),
    lane                smallint NOT NULL CHECK (lane IN (0, 1, 2)),
    status              smallint NOT NULL CHECK (status IN (0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14)),
    reason              text,
    recipient           bigint NOT NULL CHECK (recipient BETWEEN 1000000 AND 999999999999999),
    sender              text NOT NULL,
    text                text,
    ucs2                smallint NOT NULL CHECK (ucs2 IN (0, 1)),
    parts               integer NOT NULL CHECK (parts BETWEEN 1 AND 255),
    cost_cents          bigint NOT NULL CHECK (cost_cents >= 0),
    held_cents          bigint NOT NULL CHECK (held_cents >= 0),
    charged_cents       bigint NOT NULL CHECK (charged_cents >= 0),
    surcharge_cents     bigint NOT NULL CHECK (surcharge_cents BETWEEN 0 AND cost_cents),
    reference           text,
    batch               bigint,
    route               bigint NOT NULL,
    rank                bigint NOT NULL,
    attempts            integer NOT NULL CHECK (attempts >= 0),
    provider            text,
    provider_message_id text,
    last_error          text,
    due_at_ms           bigint,
    expires_at_ms       bigint NOT NULL,
    submit_by_ms        bigint,
    submitted_at_ms     bigint,
    final_at_ms         bigint,
    updated_at_ms       bigint NOT NULL,
    express_missed      smallint NOT NULL CHECK (express_missed IN (0, 1)),
    CHECK (held_cents + charged_cents <= cost_cents),
    CHECK (held_cents = 0 OR charged_cents = 0),
    CHECK (status < 10 OR held_cents = 0),
    CHECK ((status >= 10) = (final_at_ms IS NOT NULL)),
    CHECK (status <> 2 OR (attempts > 0 AND provider IS NOT NULL)),
    CHECK (status NOT IN (0, 5) OR due_at_ms IS NOT NULL)
) WITH (fillfactor = 60);
CREATE INDEX message_recipient ON shard.message (client, recipient);
CREATE INDEX message_reference ON shard.message (client, reference) WHERE reference IS NOT NULL;
CREATE INDEX message_batch ON shard.message (batch) WHERE batch IS NOT NULL;
CREATE INDEX message_provider ON shard.message (provider_message_id)
    WHERE provider_message_id IS NOT NULL;

-- Messages that are SENDING, with the gateway that sends them, and those that are UNCERTAIN, with
-- none. The owner is an incarnation: a gateway that starts again owns nothing of before.
CREATE TABLE shard.flight (
    message bigint PRIMARY KEY,
    owner   bigint,
    attempt integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE shard.part (
    message             bigint NOT NULL,
    part                integer NOT NULL,
    provider            text NOT NULL,
    status              smallint NOT NULL,
    provider_message_id text,
    PRIMARY KEY (message, part)
);
CREATE INDEX part_provider ON shard.part (provider_message_id)
    WHERE provider_message_id IS NOT NULL;

CREATE TABLE shard.queue (
    route   bigint NOT NULL,
    lane    smallint NOT NULL CHECK (lane IN (0, 1)),
    rank    bigint NOT NULL,
    message bigint NOT NULL,
    client  bigint NOT NULL,
    parts   integer NOT NULL CHECK (parts > 0),
    PRIMARY KEY (route, lane, rank, message)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- A client's place in one queue; see smsgw/models.py.
CREATE TABLE shard.flow (
    client      bigint NOT NULL,
    route       bigint NOT NULL,
    lane        smallint NOT NULL,
    next_rank   bigint NOT NULL,
    waiting     bigint NOT NULL CHECK (waiting >= 0),
    parts       bigint NOT NULL CHECK (parts >= 0),
    again_rank  bigint NOT NULL,
    served_rank bigint NOT NULL,
    PRIMARY KEY (client, route, lane)
) WITH (fillfactor = 50);
CREATE INDEX flow_express ON shard.flow (client, route) WHERE lane = 1 AND waiting > 0;

-- How many messages and parts are queued. Each gateway counts in rows of its own, so that none
-- waits for another's; what they add up to is how many there are.
CREATE TABLE shard.backlog (
    gateway  smallint NOT NULL,
    route    bigint NOT NULL,
    lane     smallint NOT NULL,
    messages bigint NOT NULL,
    parts    bigint NOT NULL,
    PRIMARY KEY (gateway, route, lane)
) WITH (fillfactor = 20);

-- The gateways that work on this shard. ``serial`` numbers a gateway's turns, so that it can learn
-- what became of one whose commit was not answered; ``waits`` is how many messages it has counted
-- in, or out, that wait to be handed over. A gateway is alive until its lease ends.
CREATE TABLE shard.gateway (
    number      smallint PRIMARY KEY CHECK (number BETWEEN 0 AND 15),
    incarnation bigint NOT NULL,
    lease_until timestamptz NOT NULL,
    serial      bigint NOT NULL,
    waits       bigint NOT NULL
) WITH (fillfactor = 20);

-- kind: 0 promote, 1 expire, 2 receipt, 3 uncertain, 4 forget the text, 5 forget the message
CREATE TABLE shard.timer (
    due_at_ms bigint NOT NULL,
    message   bigint NOT NULL,
    kind      smallint NOT NULL CHECK (kind BETWEEN 0 AND 5),
    PRIMARY KEY (due_at_ms, message, kind)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- answer: 0 running, 1 accepted, 2 batch, 3 otp by operator, 4 otp by handset, 5 otp failed,
--         6 credit adjusted (kept for ever)
CREATE TABLE shard.idempotency (
    client        bigint NOT NULL,
    digest        bytea NOT NULL CHECK (length(digest) = 16),
    fingerprint   bytea NOT NULL CHECK (length(fingerprint) = 16),
    subject       bigint NOT NULL,
    answer        smallint NOT NULL CHECK (answer BETWEEN 0 AND 6),
    credits_cents bigint NOT NULL,
    created_at_ms bigint NOT NULL,
    PRIMARY KEY (client, digest)
);

CREATE TABLE shard.batch (
    number        bigint PRIMARY KEY,
    id            bytea NOT NULL CHECK (length(id) = 16),
    client        bigint NOT NULL,
    size          integer NOT NULL CHECK (size > 0),
    done          integer NOT NULL CHECK (done BETWEEN 0 AND size),
    accepted      integer NOT NULL CHECK (accepted BETWEEN 0 AND done),
    rejections    text NOT NULL,
    credits_cents bigint NOT NULL
);

CREATE TABLE shard.code (
    client        bigint NOT NULL,
    recipient     bigint NOT NULL,
    message       bigint NOT NULL,
    id            bytea NOT NULL CHECK (length(id) = 16),
    expires_at_ms bigint NOT NULL,
    tries         integer NOT NULL CHECK (tries >= 0),
    used_at_ms    bigint,
    live          smallint NOT NULL CHECK (live IN (0, 1)),
    PRIMARY KEY (client, recipient, message)
);

CREATE TABLE shard.event (
    number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    message bigint NOT NULL,
    at_ms   bigint NOT NULL,
    kind    text NOT NULL,
    detail  text
);
CREATE INDEX event_message ON shard.event (message);

CREATE TABLE shard.parked (
    number              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    provider            text NOT NULL,
    provider_message_id text NOT NULL,
    at_ms               bigint NOT NULL,
    word                text NOT NULL,
    reason              text
);
CREATE INDEX parked_provider ON shard.parked (provider, provider_message_id);

CREATE TABLE shard.quarantine (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at_ms  bigint NOT NULL,
    item   text NOT NULL,
    error  text NOT NULL
);

CREATE TABLE shard.total (
    client        bigint NOT NULL,
    day           bigint NOT NULL,
    sender        text NOT NULL,
    status        smallint NOT NULL,
    messages      bigint NOT NULL,
    parts         bigint NOT NULL,
    cost_cents    bigint NOT NULL,
    held_cents    bigint NOT NULL,
    charged_cents bigint NOT NULL,
    PRIMARY KEY (client, day, sender, status)
) WITH (fillfactor = 60);

CREATE TABLE shard.meta (
    key   text PRIMARY KEY,
    value bigint NOT NULL
) WITH (fillfactor = 50);
INSERT INTO shard.meta (key, value) VALUES
    ('counted_to', 0), ('expired_to', 0), ('receipts_to', 0), ('texts_to', 0), ('purged_to', 0);

-- migration: 2 generations
-- Keys by the stretch of time of their subject, so that what is over goes without a walk over all;
-- 0 for what is kept for ever.
ALTER TABLE shard.idempotency ADD COLUMN generation bigint;
UPDATE shard.idempotency SET generation = CASE answer WHEN 6 THEN 0 ELSE subject >> 46 END;
ALTER TABLE shard.idempotency ALTER COLUMN generation SET NOT NULL;
CREATE UNIQUE INDEX idempotency_generation ON shard.idempotency (generation, client, digest);

-- migration: 3 no_references
-- A turn looks for the clients of all its rows at once, and the audit looks for strangers; to look
-- for that of each row took a tenth of the server's time.
ALTER TABLE shard.entry DROP CONSTRAINT entry_client_fkey;
ALTER TABLE shard.message DROP CONSTRAINT message_client_fkey;

-- migration: 4 codes_by_recipient
-- The turn that opens a one-time code looks what others have sent to its number. One-time codes only,
-- so that other messages touch no further index.
CREATE INDEX message_code ON shard.message (recipient, number) WHERE lane = 2;

-- migration: 5 parked_about
-- Whom a parked receipt is about, by which it finds its message if no answer ever names its id, and
-- that id's second spelling.
ALTER TABLE shard.parked ADD COLUMN other_id text;
ALTER TABLE shard.parked ADD COLUMN recipient bigint;
ALTER TABLE shard.parked ADD COLUMN sender text;
CREATE INDEX parked_about ON shard.parked (recipient, sender) WHERE recipient IS NOT NULL;
