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

-- grant_credit --
INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, expires_at, granted_at)
VALUES (%(tenant_id)s, %(credit_id)s, %(kind)s, %(amount_minor)s, %(expires_at)s, %(now)s)

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
-- What is left of a credit when the last period that it could pay for is billed.
WITH expired AS (
    SELECT l.tenant_id, 'expired/' || l.credit_id AS txn_key, l.left_minor, t.currency
    FROM credit_left l JOIN tenant t ON t.tenant_id = l.tenant_id
    WHERE l.expires_at <= %(now)s AND l.left_minor > 0
        AND NOT EXISTS (SELECT FROM billing_period b WHERE b.tenant_id = l.tenant_id
            AND b.state <> 'closed' AND b.ends_at <= l.expires_at)
        AND NOT EXISTS (SELECT FROM ledger_txn x WHERE x.tenant_id = l.tenant_id
            AND x.txn_key = 'expired/' || l.credit_id)
),
entered AS (
    INSERT INTO ledger_txn (tenant_id, txn_key, at)
    SELECT e.tenant_id, e.txn_key, %(now)s FROM expired e
    ON CONFLICT DO NOTHING RETURNING tenant_id, txn_key
)
INSERT INTO ledger_entry (tenant_id, txn_key, account, currency, amount_minor)
SELECT e.tenant_id, e.txn_key, a.account, e.currency, a.sign * e.left_minor
FROM expired e JOIN entered n ON n.tenant_id = e.tenant_id AND n.txn_key = e.txn_key
CROSS JOIN (VALUES ('customer_credit', 1), ('credit_given', -1)) AS a (account, sign)
