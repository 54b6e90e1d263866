-- What time does to a shard, in small steps. Statements named message_… return numbers of messages
-- first, and these messages are loaded with them.

-- name: meta_set
-- Set what a shard knows of itself.
INSERT INTO shard.meta (key, value) VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: meta_get
-- What a shard knows of itself.
SELECT value FROM shard.meta WHERE key = $1;

-- name: event_add
-- Write something down beside a message.
INSERT INTO shard.event (message, at_ms, kind, detail) VALUES ($1, $2, $3, $4);

-- name: quarantine_add
-- Put an outcome aside that cannot be stored.
INSERT INTO shard.quarantine (at_ms, item, error) VALUES ($1, $2, $3);

-- name: message_due
-- Timers that are due.
SELECT message, due_at_ms, kind FROM shard.timer WHERE due_at_ms <= $1 ORDER BY due_at_ms LIMIT $2;

-- name: timer_next
-- When the next timer is due.
SELECT min(due_at_ms) FROM shard.timer;

-- name: timer_delete
-- Forget a timer that has fired.
DELETE FROM shard.timer WHERE due_at_ms = $1 AND message = $2 AND kind = $3;

-- name: message_shelved
-- Places of a paused client that were set aside: their routes are negative.
SELECT message FROM shard.queue WHERE route < 0 AND client = $1 LIMIT $2;

-- name: message_in_flight
-- What gateways were sending that were no more at a time.
SELECT message FROM shard.flight
WHERE owner <> :own
  AND owner NOT IN (SELECT incarnation FROM shard.gateway
                    WHERE lease_until > to_timestamp($2::double precision))
LIMIT $1;

-- name: message_on_route
-- Queued messages of a route behind a place, in their order.
SELECT message, lane, rank FROM shard.queue WHERE route = $1 AND (lane, rank, message) > ($2, $3, $4)
ORDER BY lane, rank, message LIMIT $5;

-- name: routes_queued
-- The routes that have something queued.
SELECT route FROM shard.backlog GROUP BY route HAVING sum(messages) > 0;

-- name: span_end
-- The last number of the next stretch of messages, and how many it holds.
SELECT max(number), count(*) FROM
    (SELECT number FROM shard.message WHERE number > $1 AND number <= $2
     ORDER BY number LIMIT $3) AS span;

-- name: message_waiting_in_span
-- Messages of a stretch that were not handed over yet.
SELECT number FROM
    (SELECT number, status FROM shard.message WHERE number > $1 AND number <= $2
     ORDER BY number LIMIT $3) AS span
WHERE status IN (0, 1, 5);

-- name: message_unfinished_in_span
-- Messages of a stretch that are not final.
SELECT number FROM
    (SELECT number, status FROM shard.message WHERE number > $1 AND number <= $2
     ORDER BY number LIMIT $3) AS span
WHERE status < 10;

-- name: total_span
-- Count a stretch of messages, as they are now, into the daily totals.
INSERT INTO shard.total AS t
    (client, day, sender, status, messages, parts, cost_cents, held_cents, charged_cents)
SELECT client, ((number >> 22) + 1735689600000) / 86400000, sender, status,
       count(*), sum(parts), sum(cost_cents), sum(held_cents), sum(charged_cents)
FROM shard.message WHERE number > $1 AND number <= $2
GROUP BY 1, 2, 3, 4
ON CONFLICT (client, day, sender, status) DO UPDATE SET
    messages = t.messages + excluded.messages, parts = t.parts + excluded.parts,
    cost_cents = t.cost_cents + excluded.cost_cents, held_cents = t.held_cents + excluded.held_cents,
    charged_cents = t.charged_cents + excluded.charged_cents;

-- name: texts_purge
-- Forget the texts of a stretch of finished messages.
UPDATE shard.message SET text = NULL WHERE number > $1 AND number <= $2 AND status >= 10;

-- name: events_purge
-- Forget the events of a stretch of finished messages.
DELETE FROM shard.event WHERE message IN
    (SELECT number FROM shard.message WHERE number > $1 AND number <= $2 AND status >= 10);

-- name: parts_purge
-- Forget the parts of a stretch of finished messages.
DELETE FROM shard.part WHERE message IN
    (SELECT number FROM shard.message WHERE number > $1 AND number <= $2 AND status >= 10);

-- name: messages_purge
-- Forget a stretch of finished messages; what comes before it needs their status.
DELETE FROM shard.message WHERE number > $1 AND number <= $2 AND status >= 10;

-- name: batches_purge
-- Forget a stretch of batches.
DELETE FROM shard.batch WHERE number > $1 AND number <= $2;

-- name: keys_old
-- Some keys of generations that are over; those of generation 0 are kept for ever.
SELECT generation, client, digest FROM shard.idempotency
WHERE generation > 0 AND generation < $1 ORDER BY generation, client, digest LIMIT $2;

-- name: key_delete
-- Forget a key.
DELETE FROM shard.idempotency WHERE generation = $1 AND client = $2 AND digest = $3;

-- name: key_close
-- Close the key of a one-time code that a crash interrupted.
UPDATE shard.idempotency SET answer = $1, credits_cents = $2
WHERE generation = $3 AND client = $4 AND subject = $5 AND answer = 0;

-- name: codes_page
-- A stretch of codes, from where the last one ended.
SELECT client, recipient, message, expires_at_ms FROM shard.code
WHERE (client, recipient, message) > ($1, $2, $3) ORDER BY client, recipient, message LIMIT $4;

-- name: code_delete
-- Forget a one-time code.
DELETE FROM shard.code WHERE client = $1 AND recipient = $2 AND message = $3;

-- name: entries_oldest
-- A client's oldest entries, each with what it captured, and whether its message is still stored;
-- none, and none is looked at, while not even the first is old.
SELECT e.sequence, e.at_ms, e.amount_cents, e.held_cents, e.balance_cents,
       CASE e.kind WHEN 3 THEN -e.held_cents WHEN 5 THEN split_part(e.note, ' ', 2)::bigint
       ELSE 0 END, m.number IS NOT NULL
FROM shard.entry AS e LEFT JOIN shard.message AS m ON m.number = e.message
WHERE e.client = $1 ORDER BY e.sequence
LIMIT CASE WHEN (SELECT at_ms FROM shard.entry WHERE client = $1 ORDER BY sequence LIMIT 1) < $2
      THEN $3 ELSE 0 END;

-- name: entries_fold
-- Delete a client's entries up to one; its sums are carried forward by the next statement.
DELETE FROM shard.entry WHERE client = $1 AND sequence <= $2;

-- name: entry_carry
-- Carry the sums of deleted entries forward, in the place of the last of them; its note says what
-- was captured in them, so that it can still be proved.
INSERT INTO shard.entry
VALUES ($1, $2, 5, $3, $4, $5, $6, NULL, 'captured ' || $7::bigint || ' cents');

-- name: client_after
-- The next client in turn.
SELECT number FROM shard.client WHERE number > $1 ORDER BY number LIMIT 1;

-- name: parked_add
-- Keep a receipt whose message is not known.
INSERT INTO shard.parked
    (provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- name: parked_of
-- The parked receipts of one operator's id, in the order they came.
SELECT number, provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender
FROM shard.parked WHERE provider = $1 AND provider_message_id = $2 ORDER BY number LIMIT $3;

-- name: parked_about
-- A page of the receipts of an operator that were parked in a span of time and are about what went to
-- one recipient from one sender, in the order they came.
SELECT number, provider, provider_message_id, other_id, at_ms, word, reason, recipient, sender
FROM shard.parked WHERE recipient = $1 AND sender = $2 AND provider = $3
  AND at_ms >= $4 AND at_ms < $5 AND number > $6
ORDER BY number LIMIT $7;

-- name: parked_alike
-- The parked receipts of one operator's id that are about one recipient and sender.
SELECT number FROM shard.parked WHERE recipient = $1 AND sender = $2 AND provider = $3
  AND provider_message_id = $4 LIMIT $5;

-- name: parked_get
-- Whether a receipt is still parked.
SELECT number FROM shard.parked WHERE number = $1;

-- name: parked_delete
-- Forget a parked receipt.
DELETE FROM shard.parked WHERE number = $1;

-- name: parked_keys
-- The operators' ids under which something is parked, and how much.
SELECT provider, provider_message_id, other_id, count(*) FROM shard.parked GROUP BY 1, 2, 3;

-- name: parked_old
-- Receipts that were parked long ago.
SELECT number, provider, provider_message_id, other_id
FROM shard.parked WHERE at_ms < $1 LIMIT $2;

-- name: doubts_due
-- Messages that are in doubt for as long as may be, and whom they went to and from.
SELECT m.number, m.id, m.provider, m.recipient, m.sender
FROM shard.timer AS t JOIN shard.message AS m ON m.number = t.message
WHERE t.due_at_ms <= $1 AND t.kind = 3 AND m.status = 4
ORDER BY t.due_at_ms LIMIT $2;
