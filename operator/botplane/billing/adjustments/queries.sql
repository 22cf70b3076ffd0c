-- open_tenant --
-- The tenant of a name, the open one before closed ones.
SELECT tenant_id, currency FROM tenant WHERE name = %(tenant)s
ORDER BY closed_at DESC NULLS FIRST, registered_at DESC LIMIT 1

-- coupons --
SELECT tenant_id, code, percent, amount_minor, target, starts_at, ends_at, granted_at, uses_left
FROM coupon_left WHERE tenant_id = ANY(%(tenants)s) AND uses_left IS DISTINCT FROM 0

-- taxes --
SELECT tenant_id, name, target, rate, reason, starts_at, ends_at
FROM tenant_tax WHERE tenant_id = ANY(%(tenants)s)

-- credits --
SELECT tenant_id, credit_id, kind, left_minor::bigint, granted_at, expires_at
FROM credit_left WHERE tenant_id = ANY(%(tenants)s) AND left_minor > 0

-- carried --
SELECT tenant_id, sum(amount_minor)::bigint FROM ledger_entry
WHERE account = 'carried' AND tenant_id = ANY(%(tenants)s)
GROUP BY tenant_id HAVING sum(amount_minor) <> 0

-- audit --
SELECT audit_append(%(chain)s, %(actor)s, %(action)s, %(object)s, %(payload)s, %(now)s)

-- grant_coupon --
INSERT INTO coupon_grant (tenant_id, code, percent, amount_minor, target, starts_at, ends_at, uses,
    granted_at)
VALUES (%(tenant_id)s, %(code)s, %(percent)s, %(amount_minor)s, %(target)s, %(starts_at)s,
    %(ends_at)s, %(uses)s, %(now)s)

-- end_coupon --
UPDATE coupon_grant SET ends_at = greatest(%(now)s, starts_at + interval '1 second')
WHERE tenant_id = %(tenant_id)s AND code = %(code)s AND COALESCE(ends_at > %(now)s, true)
    AND ends_at IS DISTINCT FROM greatest(%(now)s, starts_at + interval '1 second')

-- grant_credit --
INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, expires_at, granted_at)
VALUES (%(tenant_id)s, %(credit_id)s, %(kind)s, %(amount_minor)s, %(expires_at)s, %(now)s)

-- ensure_periods --
SELECT ensure_periods(%(now)s)

-- one_off --
SELECT amount_minor, description, period FROM one_off
WHERE tenant_id = %(tenant_id)s AND reference = %(reference)s

-- lock_open_periods --
-- What is not billed, the next first. Whoever bills it waits, or is waited for.
SELECT period FROM billing_period
WHERE tenant_id = %(tenant_id)s AND state <> 'closed' ORDER BY starts_at
FOR NO KEY UPDATE

-- charge_one_off --
INSERT INTO one_off (tenant_id, reference, period, description, amount_minor, charged_at)
VALUES (%(tenant_id)s, %(reference)s, %(period)s, %(description)s, %(amount_minor)s, %(now)s)

-- current_tax --
SELECT rate, reason, starts_at FROM tenant_tax
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND target = %(target)s AND ends_at IS NULL

-- end_tax --
UPDATE tenant_tax SET ends_at = %(starts_at)s
WHERE tenant_id = %(tenant_id)s AND name = %(name)s AND target = %(target)s AND ends_at IS NULL

-- begin_tax --
INSERT INTO tenant_tax (tenant_id, name, target, starts_at, rate, reason)
VALUES (%(tenant_id)s, %(name)s, %(target)s, %(starts_at)s, %(rate)s, %(reason)s)

-- expire_credits --
-- What is left of a credit expires when the last period that it could pay for is billed; it is
-- there again while such a period is to be billed anew.
WITH expired AS (
    SELECT l.tenant_id, t.currency,
        CASE COALESCE(x.times, 0) WHEN 0 THEN 'expired/' ELSE 'expired-' || x.times || '/' END
            || l.credit_id AS txn_key,
        CASE WHEN EXISTS (SELECT FROM billing_period b WHERE b.tenant_id = l.tenant_id
                AND b.state <> 'closed' AND b.ends_at <= l.expires_at)
            THEN 0 ELSE l.left_minor END - COALESCE(x.expired_minor, 0) AS minor
    FROM credit_left l
    JOIN tenant t ON t.tenant_id = l.tenant_id
    LEFT JOIN credit_expired x ON x.tenant_id = l.tenant_id AND x.credit_id = l.credit_id
    WHERE l.expires_at <= %(now)s AND (%(tenant_id)s::uuid IS NULL OR l.tenant_id = %(tenant_id)s)
),
entered AS (
    INSERT INTO ledger_txn (tenant_id, txn_key, at)
    SELECT e.tenant_id, e.txn_key, %(now)s FROM expired e WHERE e.minor <> 0
    ON CONFLICT DO NOTHING RETURNING tenant_id, txn_key
)
INSERT INTO ledger_entry (tenant_id, txn_key, account, currency, amount_minor)
SELECT e.tenant_id, e.txn_key, a.account, e.currency, a.sign * e.minor
FROM expired e JOIN entered n ON n.tenant_id = e.tenant_id AND n.txn_key = e.txn_key
CROSS JOIN (VALUES ('customer_credit', 1), ('credit_given', -1)) AS a (account, sign)

-- lock_invoice --
-- On its own: a statement that waits for a lock sees the sums of before it waited.
SELECT FROM invoice WHERE number = %(number)s FOR NO KEY UPDATE

-- creditable_invoice --
-- An issued invoice by number, and what is left of it to credit and to pay.
SELECT i.tenant_id, t.name AS tenant, i.invoice_id, i.currency, i.status, i.total_minor,
    i.tax_minor, i.due_minor, n.credited_minor, n.credited_tax_minor, n.reduced_minor,
    (n.credited_minor + COALESCE((SELECT sum(r.amount_minor) FROM refund r
        WHERE r.tenant_id = i.tenant_id AND r.invoice_id = i.invoice_id
            AND r.status IN ('created', 'processing', 'unknown')), 0))::bigint AS noted_minor,
    EXISTS (SELECT FROM payment_attempt a WHERE a.tenant_id = i.tenant_id
        AND a.invoice_id = i.invoice_id
        AND a.status IN ('created', 'processing', 'requires_action', 'unknown')) AS is_being_paid
FROM invoice i JOIN tenant t ON t.tenant_id = i.tenant_id
CROSS JOIN LATERAL (SELECT COALESCE(sum(n.amount_minor), 0)::bigint AS credited_minor,
        COALESCE(sum(n.tax_minor), 0)::bigint AS credited_tax_minor,
        COALESCE(sum(n.amount_minor) FILTER (WHERE n.settled_by = 'reduce_due'), 0)::bigint
            AS reduced_minor
    FROM credit_note n WHERE n.tenant_id = i.tenant_id AND n.invoice_id = i.invoice_id) AS n
WHERE i.number = %(number)s

-- credit_note --
SELECT number, invoice_id, amount_minor FROM credit_note
WHERE tenant_id = %(tenant_id)s AND reference = %(reference)s

-- insert_credit_note --
INSERT INTO credit_note (tenant_id, reference, invoice_id, number, reason, amount_minor, tax_minor,
    settled_by, issued_at)
VALUES (%(tenant_id)s, %(reference)s, %(invoice_id)s, %(number)s, %(reason)s, %(amount_minor)s,
    %(tax_minor)s, %(settled_by)s, %(now)s)

-- credit_of_note --
INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, granted_at)
VALUES (%(tenant_id)s, %(txn_key)s, 'credit_note', %(amount_minor)s, %(now)s)

-- begin_txn --
INSERT INTO ledger_txn (tenant_id, txn_key, at) VALUES (%(tenant_id)s, %(txn_key)s, %(now)s)

-- post --
INSERT INTO ledger_entry (tenant_id, txn_key, account, currency, amount_minor)
SELECT %(tenant_id)s, %(txn_key)s, e.account, %(currency)s, e.amount_minor
FROM jsonb_each_text(%(entries)s) AS t (account, amount),
    LATERAL (SELECT t.account, t.amount::bigint AS amount_minor) AS e
WHERE e.amount_minor <> 0

-- settle_invoice --
UPDATE invoice SET status = 'paid'
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s AND status <> 'paid'

-- take_number --
INSERT INTO invoice_counter AS c (series, last) VALUES (%(series)s, 1)
ON CONFLICT (series) DO UPDATE SET last = c.last + 1
RETURNING last
