-- tenant_tables --
SELECT c.relname FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
    AND NOT c.relispartition
ORDER BY 1

-- audit --
SELECT to_jsonb(l)::text FROM audit_log l WHERE l.chain = 'tenant/' || %(tenant_id)s::text
ORDER BY l.seq

-- invoices --
SELECT i.number, i.period FROM invoice i WHERE i.tenant_id = %(tenant_id)s AND i.status <> 'void'
ORDER BY i.number

-- ensure_periods --
-- A period that nobody has asked for yet has no row, and is not billed either.
SELECT ensure_periods(%(now)s)

-- state --
SELECT t.closed_at IS NOT NULL, (SELECT count(*) FROM billing_period b
    WHERE b.tenant_id = t.tenant_id AND b.state <> 'closed')
FROM tenant t WHERE t.tenant_id = %(tenant_id)s FOR NO KEY UPDATE

-- erase_profile --
DELETE FROM tenant_profile WHERE tenant_id = %(tenant_id)s

-- erase_payment --
DELETE FROM tenant_payment WHERE tenant_id = %(tenant_id)s
