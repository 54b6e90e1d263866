-- migration: 1 first
-- One shard: everything of the clients whose slots live here. Money is integer cents, times are
-- Unix milliseconds. Every rule of money and state that the code keeps stands here a second time.

CREATE TABLE client (
    number        INTEGER PRIMARY KEY,
    id            BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    slot          INTEGER NOT NULL CHECK (slot BETWEEN 0 AND 4095),
    name          TEXT NOT NULL,
    weight        INTEGER NOT NULL CHECK (weight BETWEEN 1 AND 1000),
    created_at_ms INTEGER NOT NULL,
    credits_cents INTEGER NOT NULL CHECK (credits_cents >= 0),
    held_cents    INTEGER NOT NULL CHECK (held_cents >= 0),
    charged_cents INTEGER NOT NULL CHECK (charged_cents >= 0),
    sequence      INTEGER NOT NULL CHECK (sequence >= 0),
    waiting       INTEGER NOT NULL CHECK (waiting >= 0),
    paused        INTEGER NOT NULL CHECK (paused IN (0, 1))
) STRICT;

-- Append-only, and kept together by client: a statement reads one stretch of the table, a new entry
-- goes beside the client's last one, and the list of a client's messages is its list of holds.
-- kind: 0 topup, 1 deduct, 2 hold, 3 capture, 4 release, 5 carried_forward
CREATE TABLE entry (
    client        INTEGER NOT NULL REFERENCES client (number),
    sequence      INTEGER NOT NULL CHECK (sequence > 0),
    kind          INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 5),
    at_ms         INTEGER NOT NULL,
    amount_cents  INTEGER NOT NULL,
    held_cents    INTEGER NOT NULL,
    balance_cents INTEGER NOT NULL CHECK (balance_cents >= 0),
    message       INTEGER,
    note          TEXT,
    PRIMARY KEY (client, sequence),
    CHECK (kind <> 0 OR (amount_cents > 0 AND held_cents = 0)),
    CHECK (kind <> 1 OR (amount_cents < 0 AND held_cents = 0)),
    CHECK (kind <> 2 OR (amount_cents <= 0 AND held_cents = -amount_cents AND message IS NOT NULL)),
    CHECK (kind <> 3 OR (amount_cents = 0 AND held_cents < 0 AND message IS NOT NULL)),
    CHECK (kind <> 4 OR (amount_cents > 0 AND held_cents = -amount_cents AND message IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- The number holds the time of acceptance and rises in commit order; see smsgw/ids.py.
-- status: 0 SCHEDULED, 1 QUEUED, 2 SENDING, 3 SENT, 4 UNCERTAIN, 5 FAILED_TEMP,
--         10 DELIVERED, 11 FAILED_PERM, 12 EXPIRED, 13 CANCELLED, 14 UNKNOWN (10 and up are final)
CREATE TABLE message (
    number              INTEGER PRIMARY KEY,
    id                  BLOB NOT NULL CHECK (length(id) = 16),
    client              INTEGER NOT NULL REFERENCES client (number),
    lane                INTEGER NOT NULL CHECK (lane IN (0, 1, 2)),
    status              INTEGER NOT NULL CHECK (status IN (0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14)),
    reason              TEXT,
    recipient           INTEGER NOT NULL CHECK (recipient BETWEEN 1000000 AND 999999999999999),
    sender              TEXT NOT NULL,
    text                TEXT,
    ucs2                INTEGER NOT NULL CHECK (ucs2 IN (0, 1)),
    parts               INTEGER NOT NULL CHECK (parts BETWEEN 1 AND 255),
    cost_cents          INTEGER NOT NULL CHECK (cost_cents >= 0),
    held_cents          INTEGER NOT NULL CHECK (held_cents >= 0),
    charged_cents       INTEGER NOT NULL CHECK (charged_cents >= 0),
    surcharge_cents     INTEGER NOT NULL CHECK (surcharge_cents BETWEEN 0 AND cost_cents),
    reference           TEXT,
    batch               INTEGER,
    route               INTEGER NOT NULL,
    rank                INTEGER NOT NULL,
    attempts            INTEGER NOT NULL CHECK (attempts >= 0),
    provider            TEXT,
    provider_message_id TEXT,
    last_error          TEXT,
    due_at_ms           INTEGER,
    expires_at_ms       INTEGER NOT NULL,
    submit_by_ms        INTEGER,
    submitted_at_ms     INTEGER,
    final_at_ms         INTEGER,
    updated_at_ms       INTEGER NOT NULL,
    express_missed      INTEGER NOT NULL CHECK (express_missed IN (0, 1)),
    CHECK (held_cents + charged_cents <= cost_cents),
    CHECK (held_cents = 0 OR charged_cents = 0),
    CHECK (status < 10 OR held_cents = 0),
    CHECK ((status >= 10) = (final_at_ms IS NOT NULL)),
    CHECK (status <> 2 OR (attempts > 0 AND provider IS NOT NULL)),
    CHECK (status NOT IN (0, 5) OR due_at_ms IS NOT NULL)
) STRICT;

-- Filters of the message list; the batch is a number of the same kind, so this one grows at its end.
CREATE INDEX message_recipient ON message (client, recipient);
CREATE INDEX message_reference ON message (client, reference) WHERE reference IS NOT NULL;
CREATE INDEX message_batch ON message (batch) WHERE batch IS NOT NULL;
-- Receipts look here. Operators repeat ids, so it is not unique.
CREATE INDEX message_provider ON message (provider_message_id) WHERE provider_message_id IS NOT NULL;
-- What a crash left in doubt; small, since the windows bound it.
CREATE INDEX message_in_flight ON message (status) WHERE status IN (2, 4);

-- One outcome per part, where an operator takes parts one by one.
CREATE TABLE part (
    message             INTEGER NOT NULL,
    part                INTEGER NOT NULL,
    provider            TEXT NOT NULL,
    status              INTEGER NOT NULL,
    provider_message_id TEXT,
    PRIMARY KEY (message, part)
) STRICT, WITHOUT ROWID;
CREATE INDEX part_provider ON part (provider_message_id) WHERE provider_message_id IS NOT NULL;

-- Only what is QUEUED, so that claiming costs the same with any history behind it. A paused client's
-- places are moved to route ~route when they come up.
CREATE TABLE queue (
    route   INTEGER NOT NULL,
    lane    INTEGER NOT NULL CHECK (lane IN (0, 1)),
    rank    INTEGER NOT NULL,
    message INTEGER NOT NULL,
    client  INTEGER NOT NULL,
    parts   INTEGER NOT NULL CHECK (parts > 0),
    PRIMARY KEY (route, lane, rank, message)
) STRICT, WITHOUT ROWID;

-- What time alone will do, where it differs from the default: retries, schedules, short validities.
-- A timer whose message has moved on does nothing. kind: 0 promote, 1 expire, 2 receipt, 3 uncertain,
-- 4 forget the text, 5 forget the message
CREATE TABLE timer (
    due_at_ms INTEGER NOT NULL,
    message   INTEGER NOT NULL,
    kind      INTEGER NOT NULL CHECK (kind BETWEEN 0 AND 5),
    PRIMARY KEY (due_at_ms, message, kind)
) STRICT, WITHOUT ROWID;

-- answer: 0 running, 1 accepted, 2 batch, 3 otp by operator, 4 otp by handset, 5 otp failed,
--         6 credit adjusted (kept for ever)
CREATE TABLE idempotency (
    client        INTEGER NOT NULL,
    digest        BLOB NOT NULL CHECK (length(digest) = 16),
    fingerprint   BLOB NOT NULL CHECK (length(fingerprint) = 16),
    subject       INTEGER NOT NULL,
    answer        INTEGER NOT NULL CHECK (answer BETWEEN 0 AND 6),
    credits_cents INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    PRIMARY KEY (client, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE batch (
    number        INTEGER PRIMARY KEY,
    id            BLOB NOT NULL CHECK (length(id) = 16),
    client        INTEGER NOT NULL,
    size          INTEGER NOT NULL CHECK (size > 0),
    done          INTEGER NOT NULL CHECK (done BETWEEN 0 AND size),
    accepted      INTEGER NOT NULL CHECK (accepted BETWEEN 0 AND done),
    rejections    TEXT NOT NULL,
    credits_cents INTEGER NOT NULL
) STRICT;

-- Codes that we made. They are derived from the message id, never stored.
CREATE TABLE code (
    client        INTEGER NOT NULL,
    recipient     INTEGER NOT NULL,
    message       INTEGER NOT NULL,
    id            BLOB NOT NULL CHECK (length(id) = 16),
    expires_at_ms INTEGER NOT NULL,
    tries         INTEGER NOT NULL CHECK (tries >= 0),
    used_at_ms    INTEGER,
    live          INTEGER NOT NULL CHECK (live IN (0, 1)),
    PRIMARY KEY (client, recipient, message)
) STRICT, WITHOUT ROWID;

-- The unusual path: failed attempts, odd receipts, doubts. The usual one is told by the columns.
CREATE TABLE event (
    number  INTEGER PRIMARY KEY,
    message INTEGER NOT NULL,
    at_ms   INTEGER NOT NULL,
    kind    TEXT NOT NULL,
    detail  TEXT
) STRICT;
CREATE INDEX event_message ON event (message);

-- Receipts whose message is not known (yet), in the shard that their id hashes to.
CREATE TABLE parked (
    number              INTEGER PRIMARY KEY,
    provider            TEXT NOT NULL,
    provider_message_id TEXT NOT NULL,
    at_ms               INTEGER NOT NULL,
    word                TEXT NOT NULL,
    reason              TEXT
) STRICT;
CREATE INDEX parked_provider ON parked (provider, provider_message_id);

-- What could not be stored although it was tried alone: never dropped, always an alarm.
CREATE TABLE quarantine (
    number INTEGER PRIMARY KEY,
    at_ms  INTEGER NOT NULL,
    item   TEXT NOT NULL,
    error  TEXT NOT NULL
) STRICT;

-- Daily totals, kept by the sweeper up to meta 'counted_to', so that reports never scan a campaign.
-- No CHECK: a difference may be negative, and checks see it before it is added; the audit counts.
CREATE TABLE total (
    client        INTEGER NOT NULL,
    day           INTEGER NOT NULL,
    sender        TEXT NOT NULL,
    status        INTEGER NOT NULL,
    messages      INTEGER NOT NULL,
    parts         INTEGER NOT NULL,
    cost_cents    INTEGER NOT NULL,
    held_cents    INTEGER NOT NULL,
    charged_cents INTEGER NOT NULL,
    PRIMARY KEY (client, day, sender, status)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta (key, value) VALUES
    ('counted_to', 0), ('expired_to', 0), ('receipts_to', 0), ('texts_to', 0), ('purged_to', 0);

-- migration: 2 recipients_by_time
-- An index over all of a long history is all random pages: a new message goes anywhere into it. With
-- a stretch of time in front (2^25 ms, about nine hours), new messages go into the part of today,
-- which stays in memory; a look-up asks every stretch that there is.
DROP INDEX message_recipient;
CREATE INDEX message_recipient ON message (number >> 47, client, recipient);

-- migration: 3 generations
-- Keys are digests, so each would be a random page of a long history, for the look-up and for the
-- insert. With the stretch of time of the subject in front (2^24 ms; 0 for what is kept for ever),
-- new ones go where the last ones went, and what is over goes without a walk over all. For each
-- stretch that is behind, a filter in memory tells which keys cannot be in it.
CREATE TABLE key (
    generation    INTEGER NOT NULL,
    client        INTEGER NOT NULL,
    digest        BLOB NOT NULL CHECK (length(digest) = 16),
    fingerprint   BLOB NOT NULL CHECK (length(fingerprint) = 16),
    subject       INTEGER NOT NULL,
    answer        INTEGER NOT NULL CHECK (answer BETWEEN 0 AND 6),
    credits_cents INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    CHECK (generation = CASE answer WHEN 6 THEN 0 ELSE subject >> 46 END),
    PRIMARY KEY (generation, client, digest)
) STRICT, WITHOUT ROWID;
INSERT INTO key
    SELECT CASE answer WHEN 6 THEN 0 ELSE subject >> 46 END, client, digest, fingerprint, subject,
        answer, credits_cents, created_at_ms
    FROM idempotency ORDER BY 1, 2, 3;
DROP TABLE idempotency;
ALTER TABLE key RENAME TO idempotency;

CREATE TABLE key_filter (
    generation INTEGER PRIMARY KEY,
    bits       BLOB NOT NULL
) STRICT;

-- What was accepted and has no receipt is asked for at every start. An index over some states is used
-- only where a statement names all of them: see the statements that do.
DROP INDEX message_in_flight;
CREATE INDEX message_under_way ON message (status) WHERE status IN (2, 3, 4);

-- migration: 4 recipients_by_hour
-- What has come in nine hours is too much to stay near at hand; what has come in one (2^22 ms, 70
-- minutes) does, and a look-up in a month of messages asks six hundred stretches, in milliseconds.
DROP INDEX message_recipient;
CREATE INDEX message_recipient ON message (number >> 44, client, recipient);

-- migration: 5 parked_about
-- A receipt may come before an answer that never comes. Then nobody will know its id, and it finds its
-- message by whom that was to and from, so that is kept with it; so is the id's second spelling, if it
-- has one.
ALTER TABLE parked ADD COLUMN other_id TEXT;
ALTER TABLE parked ADD COLUMN recipient INTEGER;
ALTER TABLE parked ADD COLUMN sender TEXT;
CREATE INDEX parked_about ON parked (recipient, sender) WHERE recipient IS NOT NULL;
