-- broken_entries --
-- Entries that are missing, moved or changed: the chain does not hold from there on.
SELECT s.chain, s.seq
FROM (SELECT l.chain, l.seq, l.hash, row_number() OVER chain AS position,
        audit_hash(lag(l.hash) OVER chain, l) AS expected
    FROM audit_log l WINDOW chain AS (PARTITION BY l.chain ORDER BY l.seq)) AS s
WHERE s.seq <> s.position OR s.hash IS DISTINCT FROM s.expected
ORDER BY s.chain, s.seq

-- heads --
SELECT DISTINCT ON (chain) chain, seq, encode(hash, 'hex') FROM audit_log ORDER BY chain, seq DESC

-- entry_hash --
SELECT encode(hash, 'hex') FROM audit_log WHERE chain = %(chain)s AND seq = %(seq)s

-- rollup_is_events --
-- As far back as events are kept.
WITH kept AS MATERIALIZED (
    SELECT greatest(date_bin('1 hour', %(since)s, '2000-01-01 00:00+00'),
        (SELECT p.until FROM pruned_usage p WHERE p.relation = 'usage_event')) AS since
)
SELECT COALESCE(h.tenant_id, e.tenant_id)::text AS tenant,
    concat_ws(' ', COALESCE(h.meter, e.meter), COALESCE(h.hour, e.hour)) AS subject,
    COALESCE(e.quantity, 0)::text AS expected, COALESCE(h.quantity, 0)::text AS found
FROM (SELECT tenant_id, meter, hour, sum(quantity) AS quantity FROM usage_hourly
    WHERE hour >= (SELECT since FROM kept)
    GROUP BY tenant_id, meter, hour) h
FULL JOIN (SELECT tenant_id, meter,
        date_bin('1 hour', occurred_at, '2000-01-01 00:00+00') AS hour, sum(quantity) AS quantity
    FROM usage_event WHERE occurred_at >= (SELECT since FROM kept)
    GROUP BY 1, 2, 3) e
    ON e.tenant_id = h.tenant_id AND e.meter = h.meter AND e.hour = h.hour
WHERE COALESCE(h.quantity, 0) <> COALESCE(e.quantity, 0)

-- intervals_are_pods --
SELECT i.tenant_id::text AS tenant, concat_ws(' ', 'pod', i.pod_uid, i.container) AS subject,
    CASE WHEN p.pod_uid IS NULL THEN 'a known pod' ELSE 'an end: the pod is settled' END
        AS expected,
    CASE WHEN p.pod_uid IS NULL THEN 'none' ELSE 'an open interval' END AS found
FROM runtime_interval i
LEFT JOIN pod p ON p.tenant_id = i.tenant_id AND p.pod_uid = i.pod_uid
WHERE p.pod_uid IS NULL OR (p.settled_at IS NOT NULL AND i.ended_at IS NULL)

-- invoices_are_usage --
-- What billed periods cost by the usage and the prices that are stored, as far back as events are
-- kept; those with late usage wait for their correction.
WITH billed AS MATERIALIZED (
    SELECT b.tenant_id, b.period FROM billing_period b
    WHERE b.state = 'closed' AND b.ends_at > %(since)s
        AND NOT EXISTS (SELECT FROM pruned_usage p
            WHERE p.relation = 'usage_event' AND p.until > b.starts_at)
        AND NOT EXISTS (SELECT FROM late_usage l
            WHERE l.tenant_id = b.tenant_id AND l.period = b.period)
)
SELECT c.tenant_id::text AS tenant,
    concat_ws(' ', 'invoice', c.detail ->> 'number', c.corrects_key) AS subject,
    c.detail ->> 'nowMinor' AS expected, c.detail ->> 'wasMinor' AS found
FROM corrections(ARRAY(SELECT b.tenant_id FROM billed b ORDER BY b.tenant_id, b.period),
    ARRAY(SELECT b.period FROM billed b ORDER BY b.tenant_id, b.period)) c

-- invoices_are_ledger --
-- What an invoice adds to the receivable is what is due on it; of a void one nothing is left.
SELECT i.tenant_id::text AS tenant, 'invoice ' || i.number AS subject, i.due_minor::text AS expected,
    COALESCE(sum(e.amount_minor), 0)::text AS found
FROM invoice i
LEFT JOIN ledger_entry e ON e.tenant_id = i.tenant_id AND e.account = 'receivable'
    AND e.txn_key IN ('invoice/' || i.invoice_id, 'credit/' || i.invoice_id,
        'carried/' || i.invoice_id)
WHERE i.status IN ('finalized', 'paid', 'uncollectible')
GROUP BY i.tenant_id, i.invoice_id, i.number, i.due_minor
HAVING i.due_minor <> COALESCE(sum(e.amount_minor), 0)
UNION ALL
SELECT i.tenant_id::text, concat_ws(' ', 'void invoice', i.number, e.account), '0',
    sum(e.amount_minor)::text
FROM invoice i
JOIN ledger_entry e ON e.tenant_id = i.tenant_id
    AND e.txn_key IN ('invoice/' || i.invoice_id, 'credit/' || i.invoice_id,
        'carried/' || i.invoice_id, 'writeoff/' || i.invoice_id, 'void/' || i.invoice_id)
WHERE i.status = 'void'
GROUP BY i.tenant_id, i.number, e.account HAVING sum(e.amount_minor) <> 0

-- ledger_is_payments --
SELECT COALESCE(a.tenant_id, e.tenant_id)::text AS tenant,
    COALESCE(a.txn_key, e.txn_key) AS subject, COALESCE(a.amount_minor, 0)::text AS expected,
    COALESCE(e.amount_minor, 0)::text AS found
FROM (SELECT tenant_id, 'payment/' || invoice_id || '/' || attempt_no AS txn_key, amount_minor
    FROM payment_attempt WHERE status = 'succeeded') a
FULL JOIN (SELECT tenant_id, txn_key, amount_minor FROM ledger_entry
    WHERE account = 'cash' AND txn_key LIKE 'payment/%%') e
    ON e.tenant_id = a.tenant_id AND e.txn_key = a.txn_key
WHERE COALESCE(a.amount_minor, 0) <> COALESCE(e.amount_minor, 0)

-- ledger_is_refunds --
SELECT COALESCE(r.tenant_id, e.tenant_id)::text AS tenant,
    COALESCE(r.txn_key, e.txn_key) AS subject, COALESCE(-r.amount_minor, 0)::text AS expected,
    COALESCE(e.amount_minor, 0)::text AS found
FROM (SELECT tenant_id, 'refund/' || reference AS txn_key, amount_minor
    FROM refund WHERE status = 'succeeded') r
FULL JOIN (SELECT tenant_id, txn_key, amount_minor FROM ledger_entry
    WHERE account = 'cash' AND txn_key LIKE 'refund/%%') e
    ON e.tenant_id = r.tenant_id AND e.txn_key = r.txn_key
WHERE COALESCE(-r.amount_minor, 0) <> COALESCE(e.amount_minor, 0)

-- notes_are_ledger --
-- Of each credit note, what it takes back without tax, and its tax.
SELECT COALESCE(n.tenant_id, e.tenant_id)::text AS tenant,
    COALESCE(n.txn_key, e.txn_key) AS subject,
    concat_ws(' + ', COALESCE(n.net, 0), COALESCE(n.tax, 0)) AS expected,
    concat_ws(' + ', COALESCE(e.net, 0), COALESCE(e.tax, 0)) AS found
FROM (SELECT tenant_id, amount_minor - tax_minor AS net, tax_minor AS tax,
        CASE settled_by WHEN 'refund' THEN reference ELSE 'note/' || number END AS txn_key
    FROM credit_note) n
FULL JOIN (SELECT tenant_id, txn_key, sum(amount_minor) FILTER (WHERE account = 'discount_given')
            AS net, sum(amount_minor) FILTER (WHERE account = 'tax_payable') AS tax
    FROM ledger_entry WHERE txn_key LIKE 'note/%%' OR txn_key LIKE 'refund/%%'
    GROUP BY tenant_id, txn_key) e
    ON e.tenant_id = n.tenant_id AND e.txn_key = n.txn_key
WHERE (COALESCE(n.net, 0), COALESCE(n.tax, 0)) <> (COALESCE(e.net, 0), COALESCE(e.tax, 0))

-- receivable_is_unpaid --
SELECT COALESCE(e.tenant_id, o.tenant_id)::text AS tenant, 'receivable' AS subject,
    COALESCE(o.open_minor, 0)::text AS expected, COALESCE(e.amount_minor, 0)::text AS found
FROM (SELECT tenant_id, sum(amount_minor) AS amount_minor FROM ledger_entry
    WHERE account = 'receivable' GROUP BY tenant_id) e
FULL JOIN (SELECT tenant_id, sum(open_minor) AS open_minor FROM invoice_open
    WHERE status = 'finalized' GROUP BY tenant_id) o ON o.tenant_id = e.tenant_id
WHERE COALESCE(o.open_minor, 0) <> COALESCE(e.amount_minor, 0)

-- credit_is_granted --
-- What the ledger owes to tenants is what is left of their credits, without what has expired.
SELECT COALESCE(e.tenant_id, l.tenant_id)::text AS tenant, 'customer_credit' AS subject,
    COALESCE(-l.left_minor, 0)::text AS expected, COALESCE(e.amount_minor, 0)::text AS found
FROM (SELECT tenant_id, sum(amount_minor) AS amount_minor FROM ledger_entry
    WHERE account = 'customer_credit' GROUP BY tenant_id) e
FULL JOIN (SELECT c.tenant_id, sum(c.left_minor - COALESCE(x.expired_minor, 0)) AS left_minor
    FROM credit_left c
    LEFT JOIN credit_expired x ON x.tenant_id = c.tenant_id AND x.credit_id = c.credit_id
    GROUP BY c.tenant_id) l ON l.tenant_id = e.tenant_id
WHERE COALESCE(-l.left_minor, 0) <> COALESCE(e.amount_minor, 0)

-- ledger_balances --
SELECT tenant_id::text AS tenant, txn_key AS subject, '0' AS expected,
    sum(amount_minor)::text AS found
FROM ledger_entry GROUP BY tenant_id, txn_key, currency HAVING sum(amount_minor) <> 0

-- late_is_taken --
-- Late usage that no coming invoice corrects: its tenant is closed, or it is too old.
SELECT l.tenant_id::text AS tenant, 'late usage of ' || l.period AS subject,
    'a correction' AS expected, 'none' AS found
FROM late_usage l JOIN billing_period b ON b.tenant_id = l.tenant_id AND b.period = l.period
WHERE b.ends_at <= %(now)s::timestamptz - interval '13 months'
    OR NOT EXISTS (SELECT FROM billing_period n WHERE n.tenant_id = l.tenant_id
        AND n.starts_at >= b.ends_at AND n.state <> 'closed')

-- trades_have_rates --
SELECT tenant_id::text AS tenant, 'trade ' || trade_id AS subject, 'a rate' AS expected,
    'none for ' || currency || to_char(closed_at AT TIME ZONE 'UTC', '" of "YYYY-MM-DD') AS found
FROM trade_commission WHERE fx_rate IS NULL

-- marks_are_trades --
-- Beside marks that wait: a period up to theirs is open again, or has late trades to be corrected.
WITH kept AS MATERIALIZED (
    SELECT k.tenant_id, k.period, k.cumulative, k.mark FROM commission_mark k
    WHERE NOT EXISTS (SELECT FROM billing_period b WHERE b.tenant_id = k.tenant_id
        AND b.period <= k.period AND (b.state <> 'closed' OR EXISTS (SELECT FROM late_usage l
            WHERE l.tenant_id = b.tenant_id AND l.period = b.period)))
),
truth AS (
    SELECT DISTINCT ON (m.tenant_id, m.period) m.tenant_id, m.period, m.cumulative, m.mark
    FROM commission_marks(ARRAY(SELECT k.tenant_id FROM kept k ORDER BY k.tenant_id, k.period),
        ARRAY(SELECT k.period FROM kept k ORDER BY k.tenant_id, k.period), 'infinity', true) m
    ORDER BY m.tenant_id, m.period, m.stay DESC
)
SELECT k.tenant_id::text AS tenant, 'high-water mark of ' || k.period AS subject,
    COALESCE(concat_ws(' of ', trim_scale(t.cumulative), trim_scale(t.mark)), 'none') AS expected,
    concat_ws(' of ', trim_scale(k.cumulative), trim_scale(k.mark)) AS found
FROM kept k LEFT JOIN truth t ON t.tenant_id = k.tenant_id AND t.period = k.period
WHERE (k.cumulative, k.mark) IS DISTINCT FROM (t.cumulative, t.mark)

-- issued --
SELECT i.*, t.name AS tenant, t.time_zone, b.starts_at, b.ends_at
FROM invoice i
JOIN tenant t ON t.tenant_id = i.tenant_id
JOIN billing_period b ON b.tenant_id = i.tenant_id AND b.period = i.period
WHERE i.status <> 'draft' AND i.issued_at >= %(since)s
ORDER BY i.issued_at, i.number

-- booked --
-- What the ledger has of an invoice as it was issued, by transaction and account.
SELECT split_part(e.txn_key, '/', 1), e.account, sum(e.amount_minor)::bigint
FROM ledger_entry e
WHERE e.tenant_id = %(tenant_id)s AND e.txn_key IN ('invoice/' || %(invoice_id)s,
    'credit/' || %(invoice_id)s, 'carried/' || %(invoice_id)s)
GROUP BY 1, 2

-- paid_by_processor --
SELECT a.tenant_id, a.invoice_id, i.number, count(*) FILTER (WHERE a.status = 'succeeded')
FROM payment_attempt a JOIN invoice i ON i.tenant_id = a.tenant_id AND i.invoice_id = a.invoice_id
WHERE a.processor = %(processor)s AND a.changed_at >= %(since)s
GROUP BY a.tenant_id, a.invoice_id, i.number

-- refunded_by_processor --
-- Payments that a processor collected lately, and how many refunds of each are recorded.
SELECT a.tenant_id, i.number, a.processor_ref, (SELECT count(*) FROM refund r
    WHERE r.tenant_id = a.tenant_id AND r.invoice_id = a.invoice_id
        AND r.attempt_no = a.attempt_no AND r.status = 'succeeded')
FROM payment_attempt a JOIN invoice i ON i.tenant_id = a.tenant_id AND i.invoice_id = a.invoice_id
WHERE a.processor = %(processor)s AND a.status = 'succeeded' AND a.changed_at >= %(since)s
