-- Money that goes back: each refund is written down before the processor is called.

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
CREATE FUNCTION refund_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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
CREATE TRIGGER no_delete BEFORE DELETE ON refund FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON refund
    FOR EACH STATEMENT EXECUTE FUNCTION forbid_change();

ALTER TABLE credit_note DROP CONSTRAINT credit_note_settled_by_check;
ALTER TABLE credit_note ADD CONSTRAINT credit_note_settled_by_check
    CHECK (settled_by IN ('credit', 'reduce_due', 'refund'));
COMMENT ON COLUMN credit_note.settled_by IS
    'reduce_due: of an invoice that is not paid; credit: pays for coming invoices; refund: paid back.';

-- As before; and what refunds are under way for is not credited a second time.
CREATE OR REPLACE FUNCTION credit_note_guard() RETURNS trigger LANGUAGE plpgsql AS $$
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
-- CREATE OR REPLACE forgets the owner's rights of 009.
ALTER FUNCTION credit_note_guard() SECURITY DEFINER SET search_path FROM CURRENT;
ALTER FUNCTION refund_guard() SECURITY DEFINER SET search_path FROM CURRENT;

SELECT secure_tenant_tables();
SELECT grant_writes('botplane_billing', 'INSERT, UPDATE', ARRAY['refund']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['refund']);
