-- What is read outside of turns, from connections that cannot write.

-- name: client_by_id
-- The client with this id.
SELECT * FROM client WHERE id = ?;

-- name: client_by_number
-- The client with this number.
SELECT * FROM client WHERE number = ?;

-- name: clients_list
-- All clients, in the order in which they were created.
SELECT * FROM client ORDER BY number;

-- name: clients_sums
-- For a shard's status: how many clients, and their money.
SELECT count(*), coalesce(sum(credits_cents), 0), coalesce(sum(held_cents), 0),
       coalesce(sum(charged_cents), 0), coalesce(sum(waiting), 0) FROM client;

-- name: clients_paused
-- How many clients are paused.
SELECT count(*) FROM client WHERE paused = 1;

-- name: get_message
-- The message with this number.
SELECT * FROM message WHERE number = ?;

-- name: get_events
-- What is written down beside a message, oldest first.
SELECT at_ms, kind, detail FROM event WHERE message = ? ORDER BY number;

-- name: get_batch
-- The batch with this number.
SELECT * FROM batch WHERE number = ?;

-- name: get_batch_messages
-- A batch's messages, in the order of its items.
SELECT * FROM message WHERE batch = ? ORDER BY number;

-- name: batch_page
-- Numbers of a batch's messages, a page at a time.
SELECT number FROM message WHERE batch = ? AND number > ? ORDER BY number LIMIT ?;

-- name: list_scan
-- How far down a page may look: the lowest entry of the next stretch of the client's entries.
SELECT min(sequence), count(*), min(at_ms) FROM
    (SELECT sequence, at_ms FROM entry WHERE client = ? AND sequence < ?
     ORDER BY sequence DESC LIMIT ?);

-- name: list_messages
-- A client's messages are its holds, newest first; ?3 is where the scan ends.
SELECT e.sequence, m.* FROM entry AS e CROSS JOIN message AS m ON m.number = e.message
WHERE e.client = ?1 AND e.sequence < ?2 AND e.sequence >= ?3 AND e.kind = 2
  AND (?4 IS NULL OR m.status = ?4) AND m.number >= ?5 AND m.number < ?6
ORDER BY e.sequence DESC LIMIT ?7;

-- name: list_by_recipient
-- A client's messages to one number, newest first.
WITH RECURSIVE stretch (number) AS (
    SELECT min(?3, (SELECT max(number) FROM message)) >> 44
    UNION ALL
    SELECT number - 1 FROM stretch
    WHERE number > max(?4, (SELECT min(number) FROM message)) >> 44)
SELECT m.number, m.* FROM stretch CROSS JOIN message AS m
WHERE m.number >> 44 = stretch.number AND m.client = ?1 AND m.recipient = ?2
  AND m.number < ?3 AND m.number >= ?4
  AND (?5 IS NULL OR m.status = ?5)
  AND (?6 IS NULL OR m.reference = ?6) AND (?7 IS NULL OR m.batch = ?7)
ORDER BY m.number DESC LIMIT ?8;

-- name: list_by_reference
-- A client's messages with its own reference, newest first.
SELECT m.number, m.* FROM message AS m
WHERE m.client = ?1 AND m.reference = ?2 AND m.number < ?3 AND m.number >= ?4
  AND (?5 IS NULL OR m.status = ?5) AND (?6 IS NULL OR m.batch = ?6)
ORDER BY m.number DESC LIMIT ?7;

-- name: list_by_batch
-- A client's messages of one batch, newest first.
SELECT m.number, m.* FROM message AS m
WHERE m.batch = ?2 AND m.client = ?1 AND m.number < ?3 AND m.number >= ?4
  AND (?5 IS NULL OR m.status = ?5)
ORDER BY m.number DESC LIMIT ?6;

-- name: statement_page
-- A client's entries, newest first, each with the id of its message while that is stored.
SELECT e.sequence, e.kind, e.at_ms, e.amount_cents, e.held_cents, e.balance_cents, m.id, e.note
FROM entry AS e LEFT JOIN message AS m ON m.number = e.message
WHERE e.client = ? AND e.sequence < ? ORDER BY e.sequence DESC LIMIT ?;

-- name: report_totals
-- What was counted already.
SELECT day, sender, status, messages, parts, cost_cents, held_cents, charged_cents FROM total
WHERE client = ? AND day BETWEEN ? AND ? AND messages <> 0;

-- name: report_fresh
-- What was not counted yet: the client's holds above the watermark. An entry is at most a few
-- milliseconds older than its message's number, so a minute's margin finds them all. Days can be of
-- any year, and those far away must not be shifted out of 64 bits.
SELECT ((m.number >> 22) + 1735689600000) / 86400000 AS day, m.sender, m.status,
       count(*), sum(m.parts), sum(m.cost_cents), sum(m.held_cents), sum(m.charged_cents)
FROM entry AS e CROSS JOIN message AS m ON m.number = e.message
WHERE e.client = ?1 AND e.kind = 2
  AND m.number > (SELECT value FROM meta WHERE key = 'counted_to')
  AND e.sequence > coalesce((
      SELECT o.sequence FROM entry AS o
      WHERE o.client = ?1 AND o.at_ms < (SELECT (value >> 22) + 1735689540000 FROM meta
                                         WHERE key = 'counted_to')
      ORDER BY o.sequence DESC LIMIT 1), 0)
  AND (m.number >> 22) + 1735689600000 >= ?2 * 86400000
  AND (m.number >> 22) + 1735689600000 < (?3 + 1) * 86400000
GROUP BY 1, 2, 3;

-- name: messages_of_provider_id
-- Whose operator's id this is, whether that is open, and of which part it is the id (0: the whole);
-- of the newest messages with it, since some operators give the same id again and again.
SELECT number, provider, status IN (2, 3, 4), 0 FROM (
    SELECT number, provider, status FROM message WHERE provider_message_id = ?1
    ORDER BY number DESC LIMIT 200)
UNION ALL
SELECT p.message, p.provider, m.status < 10, p.part FROM (
    SELECT message, part, provider FROM part WHERE provider_message_id = ?1
    ORDER BY message DESC LIMIT 200) AS p
JOIN message AS m ON m.number = p.message;

-- name: uncertain_of
-- What may have reached an operator for this number from this sender, unanswered: the oldest two.
SELECT number FROM message
WHERE status IN (2, 3, 4) AND status = 4 AND provider = ? AND recipient = ? AND sender = ?
  AND number < ? ORDER BY number LIMIT 2;

-- name: owners_of
-- What a receipt for this number from this sender may mean, if nobody knows its id: what is being
-- sent or in doubt, and what was accepted or has ended without an id, of the messages from ?4 on;
-- all of it before ?5, when the receipt came.
WITH RECURSIVE stretch (number) AS (
    SELECT max(number) >> 44 FROM message
    UNION ALL
    SELECT number - 1 FROM stretch
    WHERE number > max(?4, (SELECT min(number) FROM message)) >> 44)
SELECT number FROM message
WHERE status IN (2, 3, 4) AND status IN (2, 4)
  AND provider = ?1 AND recipient = ?2 AND sender = ?3 AND number < ?5
UNION ALL
SELECT m.number FROM stretch CROSS JOIN client AS c CROSS JOIN message AS m
WHERE m.number >> 44 = stretch.number AND m.client = c.number AND m.recipient = ?2
  AND m.number >= ?4 AND m.number < ?5 AND m.provider = ?1 AND m.sender = ?3
  AND m.provider_message_id IS NULL AND (m.status IN (3, 14) OR m.reason = 'interrupted')
LIMIT 2;

-- name: accepted_open
-- What an operator has accepted and not reported on, newest first: its id of each part, where parts
-- have ids. Of a message in doubt that is what was accepted of it: nothing, as a rule.
SELECT m.number, coalesce(p.provider, m.provider),
       CASE WHEN p.message IS NULL THEN m.provider_message_id ELSE p.provider_message_id END,
       m.recipient
FROM (
    SELECT * FROM (
        SELECT number, provider, provider_message_id, recipient FROM message
        WHERE number < ?1 AND status IN (2, 3, 4) AND status = 3 ORDER BY number DESC LIMIT ?2)
    UNION ALL
    SELECT * FROM (
        SELECT number, provider, NULL, recipient FROM message
        WHERE number < ?1 AND status IN (2, 3, 4) AND status = 4 ORDER BY number DESC LIMIT ?2)
    ORDER BY 1 DESC LIMIT ?2) AS m
LEFT JOIN part AS p ON p.message = m.number AND p.status = 3
ORDER BY m.number DESC;

-- name: doubts
-- Some of the messages that are in doubt, behind a number, and whom they went to and from.
SELECT number, id, provider, recipient, sender FROM message
WHERE status IN (2, 3, 4) AND status = 4 AND number > ? ORDER BY number LIMIT ?;

-- name: uncertain_list
-- Messages of which nobody knows whether they were sent.
SELECT * FROM message WHERE status IN (2, 3, 4) AND status = 4 LIMIT ?;

-- name: parked_list
-- Receipts whose messages are not known.
SELECT provider, provider_message_id, at_ms, word, reason FROM parked ORDER BY number LIMIT ?;

-- name: queue_lowest
-- The lowest rank of every queue.
SELECT route, lane, min(rank) FROM queue WHERE route >= 0 GROUP BY route, lane;

-- name: otp_recent
-- Codes sent lately, for the limits per number: recipient and when.
SELECT recipient, (number >> 22) + 1735689600000 FROM message
WHERE number >= (?1 - 1735689600000) << 22 AND lane = 2 AND attempts > 0;

-- name: otp_recent_of
-- When one number was sent codes lately, by all clients of the shard, oldest first.
SELECT (number >> 22) + 1735689600000 FROM message
WHERE recipient = ?1 AND number >= (?2 - 1735689600000) << 22 AND lane = 2 AND attempts > 0
ORDER BY number;

-- name: code_of
-- Whether a message's code is still good: when it expires, and when it was used.
SELECT expires_at_ms, used_at_ms FROM code WHERE client = ? AND recipient = ? AND message = ?;
