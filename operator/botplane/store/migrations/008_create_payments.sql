-- Payments: each attempt is written down before the processor is called.

CREATE TABLE tenant_payment (
    tenant_id uuid PRIMARY KEY REFERENCES tenant,
    customer_ref text NOT NULL CHECK (customer_ref <> ''),
    method_ref text NOT NULL CHECK (method_ref <> ''),
    since timestamptz NOT NULL
);
COMMENT ON TABLE tenant_payment IS 'References of the payment processor; card data stay there.';

CREATE TABLE payment_attempt (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    attempt_no integer NOT NULL CHECK (attempt_no > 0),
    processor text NOT NULL,
    idempotency_key text NOT NULL,
    processor_ref text,
    status text NOT NULL DEFAULT 'created' CHECK (status IN ('created', 'processing',
        'requires_action', 'unknown', 'succeeded', 'failed')),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    decline_code text,
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, attempt_no),
    UNIQUE (tenant_id, idempotency_key),
    UNIQUE (tenant_id, processor, processor_ref),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice
);
COMMENT ON COLUMN payment_attempt.status IS
    'unknown: the processor did not answer; a look-up decides, and nothing else is tried before.';
CREATE UNIQUE INDEX payment_attempt_one_open ON payment_attempt (tenant_id, invoice_id)
    WHERE status IN ('created', 'processing', 'requires_action', 'unknown');
CREATE UNIQUE INDEX payment_attempt_one_success ON payment_attempt (tenant_id, invoice_id)
    WHERE status = 'succeeded';
CREATE INDEX invoice_unpaid ON invoice (tenant_id, invoice_id)
    WHERE status IN ('finalized', 'uncollectible');

CREATE FUNCTION payment_attempt_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status = 'succeeded'
        OR to_jsonb(NEW) - '{status,processor_ref,decline_code,changed_at}'::text[]
            IS DISTINCT FROM to_jsonb(OLD) - '{status,processor_ref,decline_code,changed_at}'::text[]
        OR (OLD.processor_ref IS NOT NULL AND NEW.processor_ref IS DISTINCT FROM OLD.processor_ref)
    THEN
        RAISE EXCEPTION 'attempt % has succeeded or belongs to another payment',
            OLD.idempotency_key USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER payment_attempt_guard BEFORE UPDATE ON payment_attempt
    FOR EACH ROW EXECUTE FUNCTION payment_attempt_guard();
CREATE TRIGGER no_delete BEFORE DELETE ON payment_attempt
    FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON payment_attempt
    FOR EACH STATEMENT EXECUTE FUNCTION forbid_change();

CREATE TABLE webhook_inbox (
    processor text NOT NULL,
    event_id text NOT NULL,
    received_at timestamptz NOT NULL,
    body jsonb NOT NULL,
    processed_at timestamptz,
    PRIMARY KEY (processor, event_id)
);
CREATE INDEX webhook_inbox_open ON webhook_inbox (received_at) WHERE processed_at IS NULL;

-- What is still to be paid on issued invoices.
CREATE VIEW invoice_open WITH (security_invoker = true) AS
SELECT i.tenant_id, i.invoice_id, i.number, i.currency, i.status, i.issued_at,
    (i.due_minor
        - COALESCE((SELECT sum(n.amount_minor) FROM credit_note n WHERE n.tenant_id = i.tenant_id
            AND n.invoice_id = i.invoice_id AND n.settled_by = 'reduce_due'), 0)
        - COALESCE((SELECT sum(a.amount_minor) FROM payment_attempt a
            WHERE a.tenant_id = i.tenant_id AND a.invoice_id = i.invoice_id
            AND a.status = 'succeeded'), 0))::bigint AS open_minor
FROM invoice i WHERE i.status IN ('finalized', 'uncollectible', 'paid');
