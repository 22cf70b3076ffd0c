-- insert_plan --
INSERT INTO plan (plan, currency) VALUES (%(plan)s, %(currency)s) ON CONFLICT DO NOTHING

-- plan_currency --
SELECT currency FROM plan WHERE plan = %(plan)s

-- latest_version --
SELECT version, content_hash, lower(effective) FROM plan_version
WHERE plan = %(plan)s ORDER BY version DESC LIMIT 1

-- end_version --
-- The latest version stops where the next one starts.
UPDATE plan_version SET effective = tstzrange(lower(effective), %(now)s)
WHERE plan = %(plan)s AND upper_inf(effective)

-- insert_version --
INSERT INTO plan_version (plan, version, effective, fee_minor, minimum_commitment_minor,
    tier_scope, rounding, commission_netting, commission_rate, commission_cap_per_trade_minor,
    commission_cap_per_period_minor, content_hash, published_at)
VALUES (%(plan)s, %(version)s, tstzrange(%(effective_from)s, NULL), %(fee_minor)s,
    %(minimum_commitment_minor)s, %(tier_scope)s, %(rounding)s, %(netting)s, %(rate)s,
    %(cap_per_trade_minor)s, %(cap_per_period_minor)s, %(content_hash)s, %(now)s)

-- audit_plan --
SELECT audit_append('system', 'plan-reconciler', 'plan.publish', %(plan)s, %(revision)s, %(now)s)

-- insert_volume_discount --
INSERT INTO plan_volume_discount (plan, version, from_volume_minor, discount)
VALUES (%(plan)s, %(version)s, %(from_volume_minor)s, %(discount)s)

-- insert_price --
INSERT INTO price (plan, version, meter, model, included, on_exceed, unit_size)
VALUES (%(plan)s, %(version)s, %(meter)s, %(model)s, %(included)s, %(on_exceed)s, %(unit_size)s)

-- insert_tier --
INSERT INTO price_tier (plan, version, meter, lo, hi, unit_price, flat_fee_minor)
VALUES (%(plan)s, %(version)s, %(meter)s, %(lo)s, %(hi)s, %(unit_price)s, %(flat_fee_minor)s)

-- ensure_periods --
-- Writes only when a month has turned somewhere.
SELECT ensure_periods(%(now)s)

-- ensure_partitions --
SELECT ensure_partitions((%(now)s::timestamptz - interval '1 month')::date,
    (%(now)s::timestamptz + interval '3 months')::date)

-- complete_until --
-- The moment that every source has passed; null while metering has never reported.
SELECT CASE WHEN bool_or(source = 'metering') THEN min(complete_until) END FROM source_watermark

-- due_periods --
-- Lock the next ended periods of tenants that nobody else is billing; parked ones are tried again.
-- The tenant is locked too: credits and balances of one tenant go from invoice to invoice.
SELECT b.tenant_id, t.name AS tenant,
    COALESCE(r.organization_name, v.snapshot ->> 'organization', '') AS organization,
    t.currency, t.time_zone, b.period, b.starts_at, b.ends_at, b.revision, v.number AS replaces
FROM billing_period b
JOIN tenant t ON t.tenant_id = b.tenant_id
LEFT JOIN tenant_profile r ON r.tenant_id = b.tenant_id
LEFT JOIN invoice v ON v.tenant_id = b.tenant_id AND v.period = b.period AND v.status = 'void'
    AND v.revision = b.revision - 1
WHERE b.state <> 'closed' AND b.ends_at <= %(complete_until)s
    AND (b.ends_at, b.tenant_id) > (%(after_ends_at)s, %(after_tenant_id)s)
ORDER BY b.ends_at, b.tenant_id
LIMIT %(limit)s
FOR UPDATE OF b SKIP LOCKED
FOR NO KEY UPDATE OF t SKIP LOCKED

-- lock_due_period --
-- Wait for whoever is billing this period; no row when it is billed already.
SELECT FROM billing_period b JOIN tenant t ON t.tenant_id = b.tenant_id
WHERE b.tenant_id = %(tenant_id)s AND b.period = %(period)s AND b.state <> 'closed'
    AND b.revision = %(revision)s
FOR UPDATE OF b FOR NO KEY UPDATE OF t

-- waiting_periods --
SELECT count(*) FROM billing_period
WHERE state <> 'closed' AND ends_at <= %(now)s
    AND (%(complete_until)s::timestamptz IS NULL OR ends_at > %(complete_until)s)

-- named_period --
-- A period of a tenant by name; the open tenant of that name before closed ones.
SELECT b.tenant_id, t.name AS tenant,
    COALESCE(r.organization_name, v.snapshot ->> 'organization', '') AS organization,
    t.currency, t.time_zone, b.period, b.starts_at, b.ends_at, b.revision, v.number AS replaces
FROM tenant t
JOIN billing_period b ON b.tenant_id = t.tenant_id
LEFT JOIN tenant_profile r ON r.tenant_id = t.tenant_id
LEFT JOIN invoice v ON v.tenant_id = b.tenant_id AND v.period = b.period AND v.status = 'void'
    AND v.revision = b.revision - 1
WHERE t.name = %(tenant)s AND CASE WHEN %(period)s::text IS NULL
    THEN b.starts_at <= %(now)s AND b.ends_at > %(now)s ELSE b.period = %(period)s END
ORDER BY t.closed_at DESC NULLS FIRST
LIMIT 1

-- period_names --
-- First and last period of a tenant; no row for an unknown tenant.
SELECT min(b.period), max(b.period) FROM tenant t
LEFT JOIN billing_period b ON b.tenant_id = t.tenant_id
WHERE t.name = %(tenant)s
GROUP BY t.tenant_id ORDER BY t.closed_at DESC NULLS FIRST LIMIT 1

-- charges --
SELECT tenant_id, period, line_key AS key, kind, meter, starts_at, ends_at, quantity, exact,
    amount_minor, detail
FROM charge(%(tenants)s, %(periods)s, %(until)s)

-- make_stage --
-- What a batch works on; one per connection, every commit or rollback empties it. `n` is the
-- position of a period in its batch.
CREATE TEMP TABLE IF NOT EXISTS rated_line (
    n integer NOT NULL,
    key text NOT NULL,
    kind text NOT NULL,
    meter text,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    quantity numeric NOT NULL,
    exact numeric NOT NULL,
    amount_minor bigint NOT NULL,
    detail jsonb NOT NULL,
    corrects_invoice uuid,
    corrects_key text
) ON COMMIT DELETE ROWS;
CREATE TEMP TABLE IF NOT EXISTS issued_invoice (
    n integer NOT NULL,
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL
) ON COMMIT DELETE ROWS

-- read_at_once --
-- The sums of thousands of tenants stay out of temporary files.
SELECT set_config('work_mem', '64MB', true), set_config('jit', 'off', true)

-- rate --
WITH earlier AS (DELETE FROM rated_line)
INSERT INTO rated_line (n, key, kind, meter, starts_at, ends_at, quantity, exact, amount_minor,
    detail)
SELECT a.n, c.line_key, c.kind, c.meter, c.starts_at, c.ends_at, c.quantity, c.exact,
    c.amount_minor, c.detail
FROM charge(%(tenants)s::uuid[], %(periods)s::text[], %(until)s::timestamptz,
    tstzrange(%(since)s, %(until)s)) c
JOIN unnest(%(tenants)s::uuid[], %(periods)s::text[]) WITH ORDINALITY AS a (tenant_id, period, n)
    ON a.tenant_id = c.tenant_id AND a.period = c.period

-- rated_lines --
SELECT n, key, kind, meter, starts_at, ends_at, quantity, exact, amount_minor, detail
FROM rated_line

-- take_late --
-- Take the marks of billed periods that the next invoice of a tenant corrects, up to 13 months back.
-- They go before the usage is read, and whoever writes usage meanwhile waits and marks again. Who is
-- writing now found the mark there already: it stays, and the invoice after this one compares again.
WITH late AS (
    SELECT l.tenant_id, l.period
    FROM unnest(%(tenants)s::uuid[], %(starts)s::timestamptz[]) AS n (tenant_id, starts_at)
    JOIN late_usage l ON l.tenant_id = n.tenant_id
    JOIN billing_period b ON b.tenant_id = l.tenant_id AND b.period = l.period
    WHERE b.state = 'closed' AND b.ends_at <= n.starts_at
        AND b.ends_at > n.starts_at - interval '13 months'
),
unwritten AS (
    SELECT b.tenant_id, b.period
    FROM late JOIN billing_period b ON b.tenant_id = late.tenant_id AND b.period = late.period
    FOR UPDATE OF b SKIP LOCKED
),
taken AS (
    DELETE FROM late_usage l USING unwritten u
    WHERE l.tenant_id = u.tenant_id AND l.period = u.period
)
SELECT tenant_id, period FROM late

-- rate_corrections --
-- The lines of billed periods that were not right, on the next invoices of their tenants.
INSERT INTO rated_line AS r (n, key, kind, meter, starts_at, ends_at, quantity, exact,
    amount_minor, detail, corrects_invoice, corrects_key)
SELECT f.n, c.line_key, 'correction', c.meter, c.starts_at, c.ends_at, c.quantity, c.exact,
    c.amount_minor, c.detail, c.corrects_invoice, c.corrects_key
FROM corrections(%(tenants)s, %(periods)s) c
JOIN unnest(%(first)s::integer[], %(billed)s::uuid[]) AS f (n, tenant_id)
    ON f.tenant_id = c.tenant_id
RETURNING r.n, r.key, r.kind, r.meter, r.starts_at, r.ends_at, r.quantity, r.exact,
    r.amount_minor, r.detail, r.corrects_invoice, r.corrects_key

-- keep_marks --
-- Where tenants with a high-water mark stand at the end of these periods; of others nothing.
INSERT INTO commission_mark AS k (tenant_id, period, cumulative, mark)
SELECT DISTINCT ON (m.tenant_id, m.period) m.tenant_id, m.period, m.cumulative, m.mark
FROM commission_marks(%(tenants)s::uuid[], %(periods)s::text[], 'infinity') m
ORDER BY m.tenant_id, m.period, m.stay DESC
ON CONFLICT (tenant_id, period) DO UPDATE
SET cumulative = excluded.cumulative, mark = excluded.mark
WHERE (k.cumulative, k.mark) <> (excluded.cumulative, excluded.mark)

-- take_numbers --
-- Advance the counter of a series and return the last number taken; a rollback gives them back.
INSERT INTO invoice_counter AS c (series, last) VALUES (%(series)s, %(count)s)
ON CONFLICT (series) DO UPDATE SET last = c.last + excluded.last
RETURNING last

-- stage_invoices --
WITH earlier AS (DELETE FROM issued_invoice)
INSERT INTO issued_invoice
SELECT i.n, i.tenant_id, i.invoice_id FROM unnest(%(numbers)s::integer[], %(tenants)s::uuid[],
    %(invoice_ids)s::uuid[]) AS i (n, tenant_id, invoice_id)

-- insert_invoices --
INSERT INTO invoice (tenant_id, invoice_id, period, revision, number, currency, subtotal_minor,
    discount_minor, tax_minor, total_minor, credit_minor, carried_in_minor, carried_out_minor,
    refunded_minor, carried_minor, due_minor, issued_at, snapshot, content_hash)
SELECT i.tenant_id, i.invoice_id, i.period, i.revision, i.number, i.currency, i.subtotal_minor,
    i.discount_minor, i.tax_minor, i.total_minor, i.credit_minor, i.carried_in_minor,
    i.carried_out_minor, i.refunded_minor, i.carried_minor, i.due_minor, i.issued_at, i.snapshot,
    decode(i.content_hash, 'hex')
FROM jsonb_to_recordset(%(rows)s) AS i (tenant_id uuid, invoice_id uuid, period text,
    revision integer, number text, currency text, subtotal_minor bigint, discount_minor bigint,
    tax_minor bigint, total_minor bigint, credit_minor bigint, carried_in_minor bigint,
    carried_out_minor bigint, refunded_minor bigint, carried_minor bigint, due_minor bigint,
    issued_at timestamptz, snapshot jsonb, content_hash text)

-- insert_lines --
-- As they were rated, with what coupons took off.
INSERT INTO invoice_line (tenant_id, invoice_id, line_key, kind, meter, starts_at, ends_at,
    quantity, exact, amount_minor, detail, discount_minor, corrects_invoice, corrects_key)
SELECT i.tenant_id, i.invoice_id, l.key, l.kind, l.meter, l.starts_at, l.ends_at, l.quantity,
    l.exact, l.amount_minor, l.detail, COALESCE(d.minor, 0), l.corrects_invoice, l.corrects_key
FROM issued_invoice i
JOIN rated_line l ON l.n = i.n
LEFT JOIN unnest(%(numbers)s::integer[], %(keys)s::text[], %(minors)s::bigint[])
    AS d (n, key, minor) ON d.n = l.n AND d.key = l.key
ORDER BY i.tenant_id, i.invoice_id, l.key

-- insert_discounts --
INSERT INTO invoice_discount
SELECT d.* FROM jsonb_to_recordset(%(rows)s) AS d (tenant_id uuid, invoice_id uuid, code text,
    position smallint, target text, percent numeric, amount_minor bigint)

-- insert_taxes --
INSERT INTO invoice_tax
SELECT t.* FROM jsonb_to_recordset(%(rows)s) AS t (tenant_id uuid, invoice_id uuid,
    position smallint, name text, rate numeric, reason text, base_minor bigint,
    amount_minor bigint)

-- insert_credit_notes --
-- What an invoice owes to the tenant becomes a credit.
INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, granted_at)
SELECT g.tenant_id, g.credit_id, 'credit_note', g.amount_minor, %(now)s
FROM jsonb_to_recordset(%(rows)s) AS g (tenant_id uuid, credit_id text, amount_minor bigint)

-- insert_credits --
INSERT INTO invoice_credit
SELECT c.* FROM jsonb_to_recordset(%(rows)s) AS c (tenant_id uuid, invoice_id uuid,
    credit_id text, position smallint, amount_minor bigint)

-- finalize_invoices --
UPDATE invoice i SET status = 'finalized'
FROM issued_invoice n WHERE i.tenant_id = n.tenant_id AND i.invoice_id = n.invoice_id

-- settle_empty_invoices --
-- Nothing is due on them, so they are paid.
UPDATE invoice i SET status = 'paid'
FROM issued_invoice n
WHERE i.tenant_id = n.tenant_id AND i.invoice_id = n.invoice_id AND i.due_minor = 0

-- insert_ledger_txns --
INSERT INTO ledger_txn (tenant_id, txn_key, at)
SELECT DISTINCT i.tenant_id, e.kind || '/' || i.invoice_id, %(now)s::timestamptz
FROM issued_invoice i
JOIN unnest(%(numbers)s::integer[], %(kinds)s::text[]) AS e (n, kind) ON e.n = i.n

-- insert_ledger_entries --
INSERT INTO ledger_entry (tenant_id, txn_key, account, currency, amount_minor)
SELECT i.tenant_id, e.kind || '/' || i.invoice_id, e.account, v.currency, e.minor
FROM issued_invoice i
JOIN invoice v ON v.tenant_id = i.tenant_id AND v.invoice_id = i.invoice_id
JOIN unnest(%(numbers)s::integer[], %(kinds)s::text[], %(accounts)s::text[], %(minors)s::bigint[])
    AS e (n, kind, account, minor) ON e.n = i.n
ORDER BY i.tenant_id, e.kind, i.invoice_id

-- audit_corrections --
-- In the order of tenants, so that two writers never wait for each other in a circle.
SELECT audit_append('tenant/' || c.tenant_id, 'billing-run', 'invoice.correct', c.number,
    jsonb_build_object('corrects', c.numbers, 'amountMinor', c.minor), %(now)s)
FROM (SELECT v.tenant_id, v.number, c.numbers, c.minor
FROM (SELECT l.n, array_agg(DISTINCT l.detail ->> 'number') AS numbers,
        sum(l.amount_minor)::bigint AS minor
    FROM rated_line l WHERE l.corrects_key IS NOT NULL GROUP BY l.n) c
JOIN issued_invoice i ON i.n = c.n
JOIN invoice v ON v.tenant_id = i.tenant_id AND v.invoice_id = i.invoice_id
ORDER BY v.tenant_id, v.number) AS c

-- close_periods --
UPDATE billing_period b SET state = 'closed', parked_reason = NULL
FROM unnest(%(tenants)s::uuid[], %(periods)s::text[]) AS n (tenant_id, period)
WHERE b.tenant_id = n.tenant_id AND b.period = n.period

-- park_period --
UPDATE billing_period SET state = 'parked', parked_reason = %(reason)s
WHERE tenant_id = %(tenant_id)s AND period = %(period)s AND state <> 'closed'

-- stored_invoice --
SELECT invoice_id, status, number, issued_at, snapshot, content_hash, carried_in_minor,
    carried_out_minor, refunded_minor
FROM invoice
WHERE tenant_id = %(tenant_id)s AND period = %(period)s AND status <> 'void'

-- stored_lines --
SELECT line_key AS key, kind, meter, starts_at, ends_at, quantity, exact, amount_minor, detail,
    discount_minor, corrects_invoice, corrects_key
FROM invoice_line
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s

-- stored_discounts --
SELECT code, target, percent, amount_minor FROM invoice_discount
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s ORDER BY position

-- stored_taxes --
SELECT name, rate, reason, base_minor, amount_minor FROM invoice_tax
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s ORDER BY position

-- stored_credits --
SELECT c.credit_id, g.kind, c.amount_minor FROM invoice_credit c
JOIN credit_grant g ON g.tenant_id = c.tenant_id AND g.credit_id = c.credit_id
WHERE c.tenant_id = %(tenant_id)s AND c.invoice_id = %(invoice_id)s ORDER BY c.position
