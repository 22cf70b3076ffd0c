-- lock_invoice --
SELECT i.tenant_id, i.invoice_id FROM invoice i
WHERE i.number = %(number)s AND i.status <> 'draft' FOR NO KEY UPDATE

-- refundable --
SELECT i.tenant_id, t.name AS tenant, i.invoice_id, i.currency, i.status, i.total_minor,
    a.attempt_no, a.processor, COALESCE(a.amount_minor, 0) AS paid_minor,
    COALESCE((SELECT sum(r.amount_minor) FROM refund r WHERE r.tenant_id = i.tenant_id
        AND r.invoice_id = i.invoice_id AND r.status <> 'failed'), 0)::bigint AS refunded_minor,
    (COALESCE((SELECT sum(n.amount_minor) FROM credit_note n WHERE n.tenant_id = i.tenant_id
        AND n.invoice_id = i.invoice_id), 0)
    + COALESCE((SELECT sum(r.amount_minor) FROM refund r WHERE r.tenant_id = i.tenant_id
        AND r.invoice_id = i.invoice_id AND r.status IN ('created', 'processing', 'unknown')), 0)
    )::bigint AS noted_minor
FROM invoice i
JOIN tenant t ON t.tenant_id = i.tenant_id
LEFT JOIN payment_attempt a ON a.tenant_id = i.tenant_id AND a.invoice_id = i.invoice_id
    AND a.status = 'succeeded'
WHERE i.tenant_id = %(tenant_id)s AND i.invoice_id = %(invoice_id)s

-- known --
SELECT r.invoice_id, r.amount_minor FROM refund r
WHERE r.tenant_id = %(tenant_id)s AND r.reference = %(reference)s

-- begin_refund --
INSERT INTO refund (tenant_id, reference, invoice_id, attempt_no, processor, amount_minor, reason,
    created_at, changed_at)
VALUES (%(tenant_id)s, %(reference)s, %(invoice_id)s, %(attempt_no)s, %(processor)s,
    %(amount_minor)s, %(reason)s, %(now)s, %(now)s)

-- open_refunds --
-- Those whose outcome is open, as they were sent or should have been.
SELECT r.tenant_id, r.invoice_id, r.reference, a.processor_ref AS payment_ref, r.amount_minor
FROM refund r
JOIN payment_attempt a ON a.tenant_id = r.tenant_id AND a.invoice_id = r.invoice_id
    AND a.attempt_no = r.attempt_no
WHERE r.processor = %(processor)s AND r.status IN ('created', 'processing', 'unknown')
    AND (%(reference)s::text IS NULL OR r.reference = %(reference)s)
    AND (%(tenant_id)s::uuid IS NULL OR r.tenant_id = %(tenant_id)s)
ORDER BY r.created_at, r.reference

-- lock_refunded --
SELECT i.currency, i.total_minor, i.tax_minor FROM invoice i
WHERE i.tenant_id = %(tenant_id)s AND i.invoice_id = %(invoice_id)s FOR NO KEY UPDATE

-- credited --
-- Of an invoice that is locked: what its credit notes have taken back, and the tax in it.
SELECT COALESCE(sum(n.amount_minor), 0)::bigint, COALESCE(sum(n.tax_minor), 0)::bigint
FROM credit_note n WHERE n.tenant_id = %(tenant_id)s AND n.invoice_id = %(invoice_id)s

-- record_result --
-- Success and failure are final; an equal result changes no row.
UPDATE refund SET status = %(status)s, decline_code = %(decline_code)s, changed_at = %(now)s,
    processor_ref = COALESCE(processor_ref, %(processor_ref)s)
WHERE tenant_id = %(tenant_id)s AND reference = %(reference)s
    AND status NOT IN ('succeeded', 'failed')
    AND (status, decline_code, processor_ref)
        IS DISTINCT FROM (%(status)s, %(decline_code)s, COALESCE(processor_ref, %(processor_ref)s))
RETURNING amount_minor, reason

-- outcome --
SELECT r.status, r.decline_code, n.number FROM refund r
LEFT JOIN credit_note n ON n.tenant_id = r.tenant_id AND n.reference = 'refund/' || r.reference
WHERE r.tenant_id = %(tenant_id)s AND r.reference = %(reference)s
