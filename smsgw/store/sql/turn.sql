-- What a turn loads and writes. "{rows}" stands for as many bracketed rows of parameters as there
-- are: one wide statement instead of many, which costs less and gives the interpreter's lock away
-- less often.

-- name: turn_clients_by_id
-- The clients with these ids.
SELECT c.* FROM (VALUES {rows}) AS wanted JOIN client AS c ON c.id = wanted.column1;

-- name: turn_clients_by_number
-- The clients with these numbers.
SELECT c.* FROM (VALUES {rows}) AS wanted JOIN client AS c ON c.number = wanted.column1;

-- name: turn_messages
-- The messages with these numbers.
SELECT m.* FROM (VALUES {rows}) AS wanted JOIN message AS m ON m.number = wanted.column1;

-- name: turn_parts
-- The parts of these messages that were accepted one by one.
SELECT p.* FROM (VALUES {rows}) AS wanted JOIN part AS p ON p.message = wanted.column1;

-- name: turn_keys
-- What these keys of these clients did.
SELECT i.client, i.digest, i.fingerprint, i.subject, i.answer, i.credits_cents, i.created_at_ms
FROM (VALUES {rows}) AS wanted JOIN idempotency AS i
ON i.generation = wanted.column1 AND i.client = wanted.column2 AND i.digest = wanted.column3;

-- name: turn_batches
-- The batches with these numbers.
SELECT b.* FROM (VALUES {rows}) AS wanted JOIN batch AS b ON b.number = wanted.column1;

-- name: turn_code
-- The newest code of a client for a number.
SELECT message, client, recipient, id, expires_at_ms, tries, used_at_ms, live FROM code
WHERE client = ? AND recipient = ? ORDER BY message DESC LIMIT 1;

-- name: turn_heads
-- The lowest-ranked places of a queue.
SELECT rank, message, client, parts FROM queue
WHERE route = ? AND lane = ? ORDER BY rank, message LIMIT ?;

-- name: turn_add_clients
-- Add clients.
INSERT INTO client VALUES {rows};

-- name: turn_change_clients
-- Set what changes of a client; row by row, which takes half as long as one wide UPDATE … FROM.
UPDATE client SET
    name = ?2, weight = ?3, credits_cents = ?4, held_cents = ?5, charged_cents = ?6,
    sequence = ?7, waiting = ?8, paused = ?9
WHERE number = ?1;

-- name: turn_add_messages
-- Add messages.
INSERT INTO message VALUES {rows};

-- name: turn_change_messages
-- Set what changes of these messages; a final status never does.
UPDATE message SET
    status = v.column2, reason = v.column3, held_cents = v.column4, charged_cents = v.column5,
    route = v.column6, rank = v.column7, attempts = v.column8, provider = v.column9,
    provider_message_id = v.column10, last_error = v.column11, due_at_ms = v.column12,
    submitted_at_ms = v.column13, final_at_ms = v.column14, updated_at_ms = v.column15,
    express_missed = v.column16
FROM (VALUES {rows}) AS v WHERE message.number = v.column1 AND message.status < 10;

-- name: turn_add_entries
-- Add entries to the ledger; none is ever changed.
INSERT INTO entry VALUES {rows};

-- name: turn_set_parts
-- Remember parts that were accepted one by one, or how they ended.
INSERT INTO part VALUES {rows}
ON CONFLICT (message, part) DO UPDATE SET status = excluded.status;

-- name: turn_set_keys
-- Remember what keys did, or how it went on.
INSERT INTO idempotency VALUES {rows}
ON CONFLICT (generation, client, digest) DO UPDATE SET
    fingerprint = excluded.fingerprint, subject = excluded.subject, answer = excluded.answer,
    credits_cents = excluded.credits_cents, created_at_ms = excluded.created_at_ms;

-- name: turn_set_batches
-- Remember batches, or how far they came.
INSERT INTO batch VALUES {rows}
ON CONFLICT (number) DO UPDATE SET
    done = excluded.done, accepted = excluded.accepted, rejections = excluded.rejections,
    credits_cents = excluded.credits_cents;

-- name: turn_set_codes
-- Remember codes, or how they were tried.
INSERT INTO code (message, client, recipient, id, expires_at_ms, tries, used_at_ms, live)
VALUES {rows}
ON CONFLICT (client, recipient, message) DO UPDATE SET
    tries = excluded.tries, used_at_ms = excluded.used_at_ms, live = excluded.live;

-- name: turn_enqueue
-- Put messages into queues.
INSERT INTO queue VALUES {rows};

-- name: turn_dequeue
-- Take a place out of its queue; a wide DELETE would scan, so this one runs row by row.
DELETE FROM queue WHERE route = ? AND lane = ? AND rank = ? AND message = ?;

-- name: turn_add_timers
-- Have the sweeper look at messages at some time.
INSERT INTO timer VALUES {rows} ON CONFLICT DO NOTHING;

-- name: turn_add_totals
-- Add differences to daily totals.
INSERT INTO total VALUES {rows}
ON CONFLICT (client, day, sender, status) DO UPDATE SET
    messages = messages + excluded.messages, parts = parts + excluded.parts,
    cost_cents = cost_cents + excluded.cost_cents, held_cents = held_cents + excluded.held_cents,
    charged_cents = charged_cents + excluded.charged_cents;

-- name: entries_last
-- The last entries of some clients' ledgers, the newest clients' first; counted, not told.
SELECT count((SELECT max(e.sequence) FROM entry AS e WHERE e.client = c.number))
FROM (SELECT number FROM client ORDER BY number DESC LIMIT ?) AS c;
