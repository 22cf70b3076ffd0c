-- lock_invoice --
-- An issued invoice by number. Whoever bills its period or collects it waits, or is waited for.
SELECT i.tenant_id, t.name AS tenant, i.invoice_id, i.number, i.period, i.currency
FROM invoice i
JOIN billing_period b ON b.tenant_id = i.tenant_id AND b.period = i.period
JOIN tenant t ON t.tenant_id = i.tenant_id
WHERE i.number = %(number)s AND i.status <> 'draft'
FOR UPDATE OF b FOR NO KEY UPDATE OF t FOR NO KEY UPDATE OF i

-- standing --
-- What speaks against making it void, read once nobody can change it any more.
SELECT i.status, b.ends_at AS ended_at, EXISTS (SELECT FROM credit_note n WHERE n.tenant_id = i.tenant_id
        AND n.invoice_id = i.invoice_id) AS is_credited,
    EXISTS (SELECT FROM payment_attempt a WHERE a.tenant_id = i.tenant_id
        AND a.invoice_id = i.invoice_id
        AND a.status IN ('created', 'processing', 'requires_action', 'unknown')) AS is_being_paid
FROM invoice i
JOIN billing_period b ON b.tenant_id = i.tenant_id AND b.period = i.period
WHERE i.tenant_id = %(tenant_id)s AND i.invoice_id = %(invoice_id)s

-- booked --
-- All that the ledger has because of the invoice, by account.
SELECT e.account, sum(e.amount_minor)::bigint FROM ledger_entry e
WHERE e.tenant_id = %(tenant_id)s AND e.txn_key IN ('invoice/' || %(invoice_id)s,
    'credit/' || %(invoice_id)s, 'carried/' || %(invoice_id)s, 'writeoff/' || %(invoice_id)s)
GROUP BY e.account

-- void --
UPDATE invoice SET status = 'void'
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s

-- reopen --
UPDATE billing_period SET state = 'open', revision = revision + 1
WHERE tenant_id = %(tenant_id)s AND period = %(period)s

-- mark_again --
-- Periods that the invoice corrected, and its own where later invoices corrected it, are compared
-- again with what is billed for them.
INSERT INTO late_usage (tenant_id, period)
SELECT c.tenant_id, c.period
FROM invoice_line l
JOIN invoice c ON c.tenant_id = l.tenant_id AND c.invoice_id = l.corrects_invoice
WHERE l.tenant_id = %(tenant_id)s AND l.invoice_id = %(invoice_id)s
UNION
SELECT c.tenant_id, c.period
FROM invoice c
JOIN invoice_line l ON l.tenant_id = c.tenant_id AND l.corrects_invoice = c.invoice_id
JOIN invoice o ON o.tenant_id = l.tenant_id AND o.invoice_id = l.invoice_id AND o.status <> 'void'
WHERE c.tenant_id = %(tenant_id)s AND c.period = %(period)s
ON CONFLICT DO NOTHING

-- forget_actual --
UPDATE forecast SET actual_minor = NULL WHERE tenant_id = %(tenant_id)s AND period = %(period)s
