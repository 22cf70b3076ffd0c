-- Payments, refunds and what tenants are told of unpaid invoices: each attempt is written down
-- before the processor is called.

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

CREATE TABLE refund (
    tenant_id uuid NOT NULL,
    reference text NOT NULL CHECK (reference <> ''),
    invoice_id uuid NOT NULL,
    attempt_no integer NOT NULL,
    processor text NOT NULL,
    processor_ref text,
    status text NOT NULL DEFAULT 'created'
        CHECK (status IN ('created', 'processing', 'unknown', 'succeeded', 'failed')),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    reason text NOT NULL CHECK (reason <> ''),
    decline_code text,
    created_at timestamptz NOT NULL,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, reference),
    UNIQUE (tenant_id, processor, processor_ref),
    FOREIGN KEY (tenant_id, invoice_id, attempt_no) REFERENCES payment_attempt
);
COMMENT ON TABLE refund IS 'Of the payment of an invoice; one that succeeds has a credit note.';
COMMENT ON COLUMN refund.reference IS 'Of who asked; part of the idempotency key.';
CREATE INDEX refund_invoice ON refund (tenant_id, invoice_id);
CREATE INDEX refund_open ON refund (created_at) WHERE status IN ('created', 'processing', 'unknown');

-- What is promised back is not promised twice: neither by refunds nor by credit notes.
CREATE FUNCTION credit_note_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    i invoice;
    taken bigint;
BEGIN
    SELECT * INTO i FROM invoice WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
        FOR NO KEY UPDATE;
    SELECT COALESCE(sum(n.amount_minor), 0) + NEW.amount_minor INTO taken FROM (
        SELECT amount_minor FROM credit_note
        WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
        UNION ALL
        SELECT amount_minor FROM refund
        WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
            AND status IN ('created', 'processing', 'unknown')) AS n;
    IF i.status IN ('draft', 'void') OR taken > i.total_minor THEN
        RAISE EXCEPTION 'invoice % is % and cannot be credited with % of %', i.number, i.status,
            taken, i.total_minor USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER credit_note_guard BEFORE INSERT ON credit_note
    FOR EACH ROW EXECUTE FUNCTION credit_note_guard();

CREATE FUNCTION refund_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    i invoice;
    paid bigint;
    back bigint;
    noted bigint;
BEGIN
    SELECT * INTO i FROM invoice WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
        FOR NO KEY UPDATE;
    SELECT amount_minor INTO paid FROM payment_attempt WHERE tenant_id = NEW.tenant_id
        AND invoice_id = NEW.invoice_id AND attempt_no = NEW.attempt_no AND status = 'succeeded';
    SELECT COALESCE(sum(amount_minor), 0) INTO back FROM refund
    WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id AND status <> 'failed';
    SELECT COALESCE(sum(n.amount_minor), 0) INTO noted FROM (
        SELECT amount_minor FROM credit_note
        WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
        UNION ALL
        SELECT amount_minor FROM refund
        WHERE tenant_id = NEW.tenant_id AND invoice_id = NEW.invoice_id
            AND status IN ('created', 'processing', 'unknown')) AS n;
    IF i.status <> 'paid' OR paid IS NULL OR back + NEW.amount_minor > paid
        OR noted + NEW.amount_minor > i.total_minor
    THEN
        RAISE EXCEPTION 'invoice % is % and % of it cannot be refunded', i.number, i.status,
            NEW.amount_minor USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refund_guard BEFORE INSERT ON refund
    FOR EACH ROW EXECUTE FUNCTION refund_guard();

CREATE FUNCTION refund_result_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.status IN ('succeeded', 'failed')
        OR to_jsonb(NEW) - '{status,processor_ref,decline_code,changed_at}'::text[]
            IS DISTINCT FROM to_jsonb(OLD) - '{status,processor_ref,decline_code,changed_at}'::text[]
        OR (OLD.processor_ref IS NOT NULL AND NEW.processor_ref IS DISTINCT FROM OLD.processor_ref)
    THEN
        RAISE EXCEPTION 'refund % is settled or belongs to another payment', OLD.reference
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refund_result_guard BEFORE UPDATE ON refund
    FOR EACH ROW EXECUTE FUNCTION refund_result_guard();

CREATE TABLE dunning_notice (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    step text NOT NULL CHECK (step <> ''),
    kind text NOT NULL CHECK (kind IN ('declined', 'method_needed', 'confirmation_needed', 'due',
        'given_up')),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    decline_code text,
    next_at timestamptz,
    noticed_at timestamptz NOT NULL,
    told_at timestamptz,
    PRIMARY KEY (tenant_id, invoice_id, step),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice
);
COMMENT ON TABLE dunning_notice IS 'Each step of dunning once per invoice.';
COMMENT ON COLUMN dunning_notice.step IS 'attempt-<no>, day-<no> after issue, or given-up.';
COMMENT ON COLUMN dunning_notice.amount_minor IS 'What was open then.';
COMMENT ON COLUMN dunning_notice.next_at IS 'When the payment is tried again by itself.';
COMMENT ON COLUMN dunning_notice.told_at IS 'When the operator posted it as an Event.';
CREATE INDEX dunning_notice_untold ON dunning_notice (noticed_at) WHERE told_at IS NULL;

CREATE FUNCTION dunning_notice_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.told_at IS NOT NULL OR to_jsonb(NEW) - 'told_at' IS DISTINCT FROM to_jsonb(OLD) - 'told_at'
    THEN
        RAISE EXCEPTION 'notice % is given', OLD.step USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dunning_notice_guard BEFORE UPDATE ON dunning_notice
    FOR EACH ROW EXECUTE FUNCTION dunning_notice_guard();

CREATE TABLE webhook_inbox (
    processor text NOT NULL,
    event_id text NOT NULL,
    received_at timestamptz NOT NULL,
    body jsonb NOT NULL,
    processed_at timestamptz,
    PRIMARY KEY (processor, event_id)
);
CREATE INDEX webhook_inbox_open ON webhook_inbox (received_at) WHERE processed_at IS NULL;
CREATE INDEX webhook_inbox_content ON webhook_inbox (received_at) WHERE body <> '{}';

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

SELECT keep_rows(ARRAY['payment_attempt', 'refund', 'dunning_notice']);
