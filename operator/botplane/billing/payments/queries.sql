-- set_method --
INSERT INTO tenant_payment AS p (tenant_id, customer_ref, method_ref, since)
VALUES (%(tenant_id)s, %(customer_ref)s, %(method_ref)s, %(now)s)
ON CONFLICT (tenant_id) DO UPDATE
SET customer_ref = excluded.customer_ref, method_ref = excluded.method_ref, since = excluded.since
WHERE (p.customer_ref, p.method_ref) <> (excluded.customer_ref, excluded.method_ref)

-- unpaid --
SELECT o.tenant_id, o.invoice_id, o.currency, o.status, o.issued_at, o.open_minor,
    p.customer_ref, p.method_ref, p.since AS method_since
FROM invoice_open o
LEFT JOIN tenant_payment p ON p.tenant_id = o.tenant_id
WHERE o.status IN ('finalized', 'uncollectible') AND o.open_minor > 0
ORDER BY o.issued_at, o.invoice_id

-- attempts --
SELECT a.tenant_id, a.invoice_id, a.attempt_no, a.status, a.decline_code, a.created_at,
    a.changed_at
FROM payment_attempt a JOIN invoice i ON i.tenant_id = a.tenant_id AND i.invoice_id = a.invoice_id
WHERE i.status IN ('finalized', 'uncollectible')
ORDER BY a.attempt_no

-- open_attempt --
SELECT a.attempt_no, a.amount_minor, a.idempotency_key
FROM payment_attempt a
WHERE a.tenant_id = %(tenant_id)s AND a.invoice_id = %(invoice_id)s
    AND a.status IN ('created', 'processing', 'requires_action', 'unknown')

-- begin_attempt --
-- Before the processor is called. No row when another run was faster.
INSERT INTO payment_attempt (tenant_id, invoice_id, attempt_no, processor, idempotency_key,
    amount_minor, created_at, changed_at)
SELECT o.tenant_id, o.invoice_id, %(attempt_no)s, %(processor)s, %(idempotency_key)s,
    o.open_minor, %(now)s, %(now)s
FROM invoice_open o
WHERE o.tenant_id = %(tenant_id)s AND o.invoice_id = %(invoice_id)s AND o.open_minor > 0
ON CONFLICT DO NOTHING
RETURNING amount_minor

-- lock_invoice --
SELECT status, currency FROM invoice
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s FOR NO KEY UPDATE

-- record_result --
-- Success is final; everything else may still turn out otherwise. An equal result changes no row.
-- What was cancelled stays so, whatever an older state says that a search still finds.
-- A second success for one invoice is not recorded: reconcile names it, for a refund.
UPDATE payment_attempt SET status = %(status)s, decline_code = %(decline_code)s, changed_at = %(now)s,
    processor_ref = COALESCE(processor_ref, %(processor_ref)s)
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s AND attempt_no = %(attempt_no)s
    AND status <> 'succeeded'
    AND NOT (status = 'failed' AND decline_code = 'canceled'
        AND %(status)s IN ('created', 'processing', 'requires_action', 'unknown'))
    AND NOT (%(status)s = 'succeeded' AND EXISTS (SELECT FROM payment_attempt o
        WHERE o.tenant_id = %(tenant_id)s AND o.invoice_id = %(invoice_id)s
            AND o.status = 'succeeded'))
    AND (status, decline_code, processor_ref)
        IS DISTINCT FROM (%(status)s, %(decline_code)s, COALESCE(processor_ref, %(processor_ref)s))
RETURNING amount_minor

-- set_status --
UPDATE invoice SET status = %(status)s
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s AND status <> %(status)s
    AND status NOT IN ('paid', 'void')

-- credit_of_payment --
-- What a payment brought beyond what was open pays for coming invoices.
INSERT INTO credit_grant (tenant_id, credit_id, kind, amount_minor, granted_at)
VALUES (%(tenant_id)s, %(txn_key)s, 'credit_note', %(excess)s, %(now)s)

-- open_minor --
SELECT open_minor FROM invoice_open
WHERE tenant_id = %(tenant_id)s AND invoice_id = %(invoice_id)s

-- invoice_by_number --
SELECT i.tenant_id, t.name, i.invoice_id, i.status, COALESCE((SELECT max(a.attempt_no)
    FROM payment_attempt a
    WHERE a.tenant_id = i.tenant_id AND a.invoice_id = i.invoice_id), 0) AS attempts
FROM invoice i JOIN tenant t ON t.tenant_id = i.tenant_id
WHERE i.number = %(number)s AND i.status <> 'draft' FOR NO KEY UPDATE OF i

-- invoice_of_key --
SELECT i.number FROM payment_attempt a
JOIN invoice i ON i.tenant_id = a.tenant_id AND i.invoice_id = a.invoice_id
WHERE a.idempotency_key = %(idempotency_key)s

-- overdue_tenants --
SELECT DISTINCT tenant_id FROM invoice_open WHERE status = 'uncollectible' AND open_minor > 0

-- store_event --
INSERT INTO webhook_inbox (processor, event_id, received_at, body)
VALUES (%(processor)s, %(event_id)s, %(now)s, %(body)s)
ON CONFLICT DO NOTHING

-- open_events --
SELECT event_id, body FROM webhook_inbox
WHERE processor = %(processor)s AND processed_at IS NULL ORDER BY received_at

-- invoice_tenant --
SELECT tenant_id FROM invoice WHERE invoice_id = %(invoice_id)s

-- close_event --
UPDATE webhook_inbox SET processed_at = %(now)s
WHERE processor = %(processor)s AND event_id = %(event_id)s AND processed_at IS NULL
