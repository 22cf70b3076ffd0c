-- give --
-- Each step once; an invoice that was paid in between gets none.
INSERT INTO dunning_notice (tenant_id, invoice_id, step, kind, amount_minor, decline_code, next_at,
    noticed_at)
SELECT o.tenant_id, o.invoice_id, n.step, n.kind, o.open_minor, n.decline_code, n.next_at, %(now)s
FROM unnest(%(tenants)s::uuid[], %(invoices)s::uuid[], %(steps)s::text[], %(kinds)s::text[],
    %(codes)s::text[], %(next)s::timestamptz[])
    AS n (tenant_id, invoice_id, step, kind, decline_code, next_at)
JOIN invoice_open o ON o.tenant_id = n.tenant_id AND o.invoice_id = n.invoice_id
WHERE o.status IN ('finalized', 'uncollectible') AND o.open_minor > 0
    AND NOT EXISTS (SELECT FROM dunning_notice k WHERE k.tenant_id = n.tenant_id
        AND k.invoice_id = n.invoice_id AND k.step = n.step)
ORDER BY o.tenant_id, o.invoice_id, n.step
ON CONFLICT DO NOTHING

-- tell --
-- The notices that nobody has posted yet; whoever asks takes them.
WITH told AS (
    UPDATE dunning_notice SET told_at = %(now)s
    WHERE (tenant_id, invoice_id, step) IN (SELECT n.tenant_id, n.invoice_id, n.step
        FROM dunning_notice n WHERE n.told_at IS NULL
        ORDER BY n.noticed_at LIMIT 1000 FOR UPDATE SKIP LOCKED)
    RETURNING tenant_id, invoice_id, step, kind, amount_minor, decline_code, next_at, noticed_at
)
SELECT t.tenant_id, i.number, i.currency, t.step, t.kind, t.amount_minor, t.decline_code,
    t.next_at, t.noticed_at
FROM told t JOIN invoice i ON i.tenant_id = t.tenant_id AND i.invoice_id = t.invoice_id
ORDER BY t.noticed_at, i.number, t.step

-- notices --
SELECT n.tenant_id, i.number, i.currency, n.step, n.kind, n.amount_minor, n.decline_code,
    n.next_at, n.noticed_at
FROM dunning_notice n
JOIN invoice i ON i.tenant_id = n.tenant_id AND i.invoice_id = n.invoice_id
WHERE n.tenant_id = %(tenant_id)s
ORDER BY n.noticed_at DESC, i.number DESC, n.step DESC LIMIT 100

-- tenant --
SELECT tenant_id FROM tenant WHERE name = %(tenant)s
ORDER BY closed_at DESC NULLS FIRST, registered_at DESC LIMIT 1
