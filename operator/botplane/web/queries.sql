-- invoices --
-- The newest first; amounts in the major unit, as texts.
SELECT i.number, i.period, i.status, i.currency, i.issued_at,
    (i.total_minor * power(10::numeric, -c.minor_units))::numeric(38, 4) AS total,
    (i.due_minor * power(10::numeric, -c.minor_units))::numeric(38, 4) AS due, c.minor_units
FROM invoice i JOIN currency c ON c.currency = i.currency
WHERE i.tenant_id = %(tenant_id)s AND i.status NOT IN ('draft')
ORDER BY i.issued_at DESC, i.number DESC
LIMIT 100
