-- What is read outside of turns.

-- name: client_by_id
-- The client with this id.
SELECT * FROM shard.client WHERE id = $1;

-- name: client_by_number
-- The client with this number.
SELECT * FROM shard.client WHERE number = $1;

-- name: clients_list
-- All clients, in the order in which they were created.
SELECT * FROM shard.client ORDER BY number;

-- name: clients_sums
-- For a shard's status: how many clients, and their money.
SELECT count(*), coalesce(sum(credits_cents), 0)::bigint, coalesce(sum(held_cents), 0)::bigint,
       coalesce(sum(charged_cents), 0)::bigint, coalesce(sum(waiting), 0)::bigint
FROM shard.client;

-- name: clients_paused
-- How many clients are paused.
SELECT count(*) FROM shard.client WHERE paused = 1;

-- name: get_message
-- The message with this number.
SELECT * FROM shard.message WHERE number = $1;

-- name: get_events
-- What is written down beside a message, oldest first.
SELECT at_ms, kind, detail FROM shard.event WHERE message = $1 ORDER BY number;

-- name: get_batch
-- The batch with this number.
SELECT * FROM shard.batch WHERE number = $1;

-- name: get_batch_messages
-- A batch's messages, in the order of its items.
SELECT * FROM shard.message WHERE batch = $1 ORDER BY number;

-- name: batch_page
-- Numbers of a batch's messages, a page at a time.
SELECT number FROM shard.message WHERE batch = $1 AND number > $2 ORDER BY number LIMIT $3;

-- name: list_scan
-- How far down a page may look: the lowest entry of the next stretch of the client's entries.
SELECT min(sequence), count(*), min(at_ms) FROM
    (SELECT sequence, at_ms FROM shard.entry WHERE client = $1 AND sequence < $2
     ORDER BY sequence DESC LIMIT $3) AS stretch;

-- name: list_messages
-- A client's messages are its holds, newest first; $3 is where the scan ends.
SELECT e.sequence, m.* FROM shard.entry AS e JOIN shard.message AS m ON m.number = e.message
WHERE e.client = $1 AND e.sequence < $2 AND e.sequence >= $3 AND e.kind = 2
  AND ($4::bigint IS NULL OR m.status = $4) AND m.number >= $5 AND m.number < $6
ORDER BY e.sequence DESC LIMIT $7;

-- name: list_by_recipient
-- A client's messages to one number, newest first.
SELECT m.number, m.* FROM shard.message AS m
WHERE m.client = $1 AND m.recipient = $2 AND m.number < $3 AND m.number >= $4
  AND ($5::bigint IS NULL OR m.status = $5)
  AND ($6::text IS NULL OR m.reference = $6) AND ($7::bigint IS NULL OR m.batch = $7)
ORDER BY m.number DESC LIMIT $8;

-- name: list_by_reference
-- A client's messages with its own reference, newest first.
SELECT m.number, m.* FROM shard.message AS m
WHERE m.client = $1 AND m.reference = $2 AND m.number < $3 AND m.number >= $4
  AND ($5::bigint IS NULL OR m.status = $5) AND ($6::bigint IS NULL OR m.batch = $6)
ORDER BY m.number DESC LIMIT $7;

-- name: list_by_batch
-- A client's messages of one batch, newest first.
SELECT m.number, m.* FROM shard.message AS m
WHERE m.batch = $2 AND m.client = $1 AND m.number < $3 AND m.number >= $4
  AND ($5::bigint IS NULL OR m.status = $5)
ORDER BY m.number DESC LIMIT $6;

-- name: statement_page
-- A client's entries, newest first, each with the id of its message while that is stored.
SELECT e.sequence, e.kind, e.at_ms, e.amount_cents, e.held_cents, e.balance_cents, m.id, e.note
FROM shard.entry AS e LEFT JOIN shard.message AS m ON m.number = e.message
WHERE e.client = $1 AND e.sequence < $2 ORDER BY e.sequence DESC LIMIT $3;

-- name: report_totals
-- What was counted already.
SELECT day, sender, status, messages, parts, cost_cents, held_cents, charged_cents
FROM shard.total WHERE client = $1 AND day BETWEEN $2 AND $3 AND messages <> 0;

-- name: report_fresh
-- What was not counted yet: the client's holds above the watermark. An entry is at most a few
-- milliseconds older than its message's number, so a minute's margin finds them all.
SELECT ((m.number >> 22) + 1735689600000) / 86400000 AS day, m.sender, m.status, count(*),
       sum(m.parts)::bigint, sum(m.cost_cents)::bigint, sum(m.held_cents)::bigint,
       sum(m.charged_cents)::bigint
FROM shard.entry AS e JOIN shard.message AS m ON m.number = e.message
WHERE e.client = $1 AND e.kind = 2
  AND m.number > (SELECT value FROM shard.meta WHERE key = 'counted_to')
  AND e.sequence > coalesce((
      SELECT o.sequence FROM shard.entry AS o
      WHERE o.client = $1 AND o.at_ms < (SELECT (value >> 22) + 1735689540000 FROM shard.meta
                                         WHERE key = 'counted_to')
      ORDER BY o.sequence DESC LIMIT 1), 0)
  AND (m.number >> 22) + 1735689600000 >= $2::bigint * 86400000
  AND (m.number >> 22) + 1735689600000 < ($3::bigint + 1) * 86400000
GROUP BY 1, 2, 3;

-- name: messages_of_provider_id
-- Whose operator's id this is, whether that is open, and of which part it is the id (0: the whole);
-- of the newest messages with it, since some operators give the same id again and again.
SELECT number, provider, status IN (2, 3, 4), 0 FROM (
    SELECT number, provider, status FROM shard.message WHERE provider_message_id = $1
    ORDER BY number DESC LIMIT 200) AS newest
UNION ALL
SELECT p.message, p.provider, m.status < 10, p.part FROM (
    SELECT message, part, provider FROM shard.part WHERE provider_message_id = $1
    ORDER BY message DESC LIMIT 200) AS p
JOIN shard.message AS m ON m.number = p.message;

-- name: uncertain_of
-- What may have reached an operator for this number from this sender, unanswered: the oldest two.
SELECT m.number FROM shard.flight AS f JOIN shard.message AS m ON m.number = f.message
WHERE m.status = 4 AND m.provider = $1 AND m.recipient = $2 AND m.sender = $3 AND m.number < $4
ORDER BY m.number LIMIT 2;

-- name: owners_of
-- What a receipt for this number from this sender may mean, if nobody knows its id: what is being
-- sent or in doubt, and what was accepted or has ended without an id, of the messages from $4 on;
-- all of it before $5, when the receipt came.
SELECT m.number FROM shard.flight AS f JOIN shard.message AS m ON m.number = f.message
WHERE m.status IN (2, 4) AND m.provider = $1 AND m.recipient = $2 AND m.sender = $3
  AND m.number < $5
UNION ALL
SELECT m.number FROM shard.client AS c JOIN shard.message AS m ON m.client = c.number
WHERE m.recipient = $2 AND m.number >= $4 AND m.number < $5 AND m.provider = $1 AND m.sender = $3
  AND m.provider_message_id IS NULL AND (m.status IN (3, 14) OR m.reason = 'interrupted')
LIMIT 2;

-- name: accepted_open
-- What an operator has accepted and not reported on, newest first: its id of each part, where parts
-- have ids. Of a message in doubt that is what was accepted of it: nothing, as a rule.
SELECT m.number, coalesce(p.provider, m.provider),
       CASE WHEN p.message IS NULL THEN m.provider_message_id ELSE p.provider_message_id END,
       m.recipient
FROM (SELECT number, provider, CASE status WHEN 3 THEN provider_message_id END, recipient
      FROM shard.message WHERE number < $1 AND status IN (3, 4) ORDER BY number DESC LIMIT $2)
     AS m (number, provider, provider_message_id, recipient)
LEFT JOIN shard.part AS p ON p.message = m.number AND p.status = 3
ORDER BY m.number DESC;

-- name: doubts
-- Some of the messages that are in doubt, behind a number, and whom they went to and from.
SELECT m.number, m.id, m.provider, m.recipient, m.sender
FROM shard.flight AS f JOIN shard.message AS m ON m.number = f.message
WHERE f.message > $1 AND m.status = 4 ORDER BY f.message LIMIT $2;

-- name: uncertain_list
-- Messages of which nobody knows whether they were sent.
SELECT m.* FROM shard.flight AS f JOIN shard.message AS m ON m.number = f.message
WHERE m.status = 4 LIMIT $1;

-- name: parked_list
-- Receipts whose messages are not known.
SELECT provider, provider_message_id, at_ms, word, reason FROM shard.parked ORDER BY number LIMIT $1;

-- name: queue_lowest
-- The lowest rank of every queue.
SELECT b.route, b.lane, (SELECT min(q.rank) FROM shard.queue AS q
                         WHERE q.route = b.route AND q.lane = b.lane)
FROM (SELECT DISTINCT route, lane FROM shard.backlog WHERE route >= 0) AS b;

-- name: otp_recent
-- Codes sent lately, for the limits per number: recipient and when.
SELECT recipient, (number >> 22) + 1735689600000 FROM shard.message
WHERE number >= ($1::bigint - 1735689600000) << 22 AND lane = 2 AND attempts > 0;

-- name: otp_recent_of
-- When one number was sent codes lately, by all clients of the shard, oldest first.
SELECT (number >> 22) + 1735689600000 FROM shard.message
WHERE recipient = $1 AND number >= ($2::bigint - 1735689600000) << 22 AND lane = 2 AND attempts > 0
ORDER BY number;

-- name: code_of
-- Whether a message's code is still good: when it expires, and when it was used.
SELECT expires_at_ms, used_at_ms FROM shard.code
WHERE client = $1 AND recipient = $2 AND message = $3;
