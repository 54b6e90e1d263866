-- What time does to a shard, in small steps. Statements named message_… return numbers of messages
-- first, and these messages are loaded with them.

-- name: meta_set
-- Set what a shard knows of itself.
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: meta_get
-- What a shard knows of itself.
SELECT value FROM meta WHERE key = ?;

-- name: event_add
-- Write something down beside a message.
INSERT INTO event (message, at_ms, kind, detail) VALUES (?, ?, ?, ?);

-- name: quarantine_add
-- Put an outcome aside that cannot be stored.
INSERT INTO quarantine (at_ms, item, error) VALUES (?, ?, ?);

-- name: message_due
-- Timers that are due.
SELECT message, due_at_ms, kind FROM timer WHERE due_at_ms <= ? ORDER BY due_at_ms LIMIT ?;

-- name: timer_next
-- When the next timer is due.
SELECT min(due_at_ms) FROM timer;

-- name: timer_delete
-- Forget a timer that has fired.
DELETE FROM timer WHERE due_at_ms = ? AND message = ? AND kind = ?;

-- name: message_shelved
-- Places of a paused client that were set aside: their routes are negative.
SELECT message FROM queue WHERE route < 0 AND client = ? LIMIT ?;

-- name: message_in_flight
-- What was being sent when the process ended.
SELECT number FROM message WHERE status IN (2, 3, 4) AND status = 2 LIMIT ?;

-- name: message_on_route
-- Queued messages of a route behind a place, in their order.
SELECT message, lane, rank FROM queue WHERE route = ? AND (lane, rank, message) > (?, ?, ?)
ORDER BY lane, rank, message LIMIT ?;

-- name: routes_queued
-- The routes that have something queued.
SELECT DISTINCT route FROM queue;

-- name: span_end
-- The last number of the next stretch of messages, and how many it holds.
SELECT max(number), count(*) FROM
    (SELECT number FROM message WHERE number > ? AND number <= ? ORDER BY number LIMIT ?);

-- name: message_waiting_in_span
-- Messages of a stretch that were not handed over yet.
SELECT number FROM
    (SELECT number, status FROM message WHERE number > ? AND number <= ? ORDER BY number LIMIT ?)
WHERE status IN (0, 1, 5);

-- name: message_unfinished_in_span
-- Messages of a stretch that are not final.
SELECT number FROM
    (SELECT number, status FROM message WHERE number > ? AND number <= ? ORDER BY number LIMIT ?)
WHERE status < 10;

-- name: total_span
-- Count a stretch of messages, as they are now, into the daily totals.
INSERT INTO total (client, day, sender, status, messages, parts, cost_cents, held_cents, charged_cents)
SELECT client, ((number >> 22) + 1735689600000) / 86400000, sender, status,
       count(*), sum(parts), sum(cost_cents), sum(held_cents), sum(charged_cents)
FROM message WHERE number > ? AND number <= ?
GROUP BY 1, 2, 3, 4
ON CONFLICT (client, day, sender, status) DO UPDATE SET
    messages = messages + excluded.messages, parts = parts + excluded.parts,
    cost_cents = cost_cents + excluded.cost_cents, held_cents = held_cents + excluded.held_cents,
    charged_cents = charged_cents + excluded.charged_cents;

-- name: texts_purge
-- Forget the texts of a stretch of finished messages.
UPDATE message SET text = NULL WHERE number > ? AND number <= ? AND status >= 10;

-- name: events_purge
-- Forget the events of a stretch of finished messages.
DELETE FROM event WHERE message IN
    (SELECT number FROM message WHERE number > ? AND number <= ? AND status >= 10);

-- name: parts_purge
-- Forget the parts of a stretch of finished messages.
DELETE FROM part WHERE message IN
    (SELECT number FROM message WHERE number > ? AND number <= ? AND status >= 10);

-- name: messages_purge
-- Forget a stretch of finished messages; what comes before it needs their status.
DELETE FROM message WHERE number > ? AND number <= ? AND status >= 10;

-- name: batches_purge
-- Forget a stretch of batches.
DELETE FROM batch WHERE number > ? AND number <= ?;

-- name: keys_old
-- Some keys of generations that are over; those of generation 0 are kept for ever.
SELECT generation, client, digest FROM idempotency
WHERE generation > 0 AND generation < ? ORDER BY generation, client, digest LIMIT ?;

-- name: key_delete
-- Forget a key.
DELETE FROM idempotency WHERE generation = ? AND client = ? AND digest = ?;

-- name: key_close
-- Close the key of a one-time code that a crash interrupted.
UPDATE idempotency SET answer = ?, credits_cents = ?
WHERE generation = ? AND client = ? AND subject = ? AND answer = 0;

-- name: codes_page
-- A stretch of codes, from where the last one ended.
SELECT client, recipient, message, expires_at_ms FROM code
WHERE (client, recipient, message) > (?, ?, ?) ORDER BY client, recipient, message LIMIT ?;

-- name: code_delete
-- Forget a one-time code.
DELETE FROM code WHERE client = ? AND recipient = ? AND message = ?;

-- name: entries_oldest
-- A client's oldest entries, each with what it captured, and whether its message is still stored;
-- none, and none is looked at, while not even the first is old.
SELECT e.sequence, e.at_ms, e.amount_cents, e.held_cents, e.balance_cents,
       CASE e.kind WHEN 3 THEN -e.held_cents WHEN 5 THEN CAST(substr(e.note, 10) AS INTEGER)
       ELSE 0 END, m.number IS NOT NULL
FROM entry AS e LEFT JOIN message AS m ON m.number = e.message
WHERE e.client = ?1 ORDER BY e.sequence
LIMIT CASE WHEN (SELECT at_ms FROM entry WHERE client = ?1 ORDER BY sequence LIMIT 1) < ?2
      THEN ?3 ELSE 0 END;

-- name: entries_fold
-- Delete a client's entries up to one; its sums are carried forward by the next statement.
DELETE FROM entry WHERE client = ? AND sequence <= ?;

-- name: entry_carry
-- Carry the sums of deleted entries forward, in the place of the last of them; its note says what
-- was captured in them, so that it can still be proved.
INSERT INTO entry VALUES (?, ?, 5, ?, ?, ?, ?, NULL, 'captured ' || ? || ' cents');

-- name: client_after
-- The next client in turn.
SELECT number FROM client WHERE number > ? ORDER BY number LIMIT 1;

-- name: parked_add
-- Keep a receipt whose message is not known.
INSERT INTO parked
    (provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: parked_of
-- The parked receipts of one operator's id, in the order they came.
SELECT number, provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender
FROM parked WHERE provider = ? AND provider_message_id = ? ORDER BY number LIMIT ?;

-- name: parked_about
-- A page of the receipts of an operator that were parked in a span of time and are about what went to
-- one recipient from one sender, in the order they came.
SELECT number, provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender
FROM parked WHERE recipient = ? AND sender = ? AND provider = ?
  AND at_ms >= ? AND at_ms < ? AND number > ?
ORDER BY number LIMIT ?;

-- name: parked_alike
-- The parked receipts of one operator's id that are about one recipient and sender.
SELECT number FROM parked WHERE recipient = ? AND sender = ? AND provider = ?
  AND provider_message_id = ? LIMIT ?;

-- name: parked_get
-- Whether a receipt is still parked.
SELECT number FROM parked WHERE number = ?;

-- name: parked_delete
-- Forget a parked receipt.
DELETE FROM parked WHERE number = ?;

-- name: parked_keys
-- The operators' ids under which something is parked, and how much.
SELECT provider, provider_message_id, other_id, count(*) FROM parked GROUP BY 1, 2, 3;

-- name: parked_old
-- Receipts that were parked long ago.
SELECT number, provider, provider_message_id, other_id FROM parked WHERE at_ms < ? LIMIT ?;

-- name: doubts_due
-- Messages that are in doubt for as long as may be, and whom they went to and from.
SELECT m.number, m.id, m.provider, m.recipient, m.sender
FROM timer AS t CROSS JOIN message AS m
WHERE m.number = t.message AND t.due_at_ms <= ? AND t.kind = 3 AND m.status = 4
ORDER BY t.due_at_ms LIMIT ?;
