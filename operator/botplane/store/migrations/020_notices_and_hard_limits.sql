-- What tenants are told of unpaid invoices, and hard limits on what a plan includes.

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
CREATE TRIGGER no_delete BEFORE DELETE ON dunning_notice
    FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON dunning_notice
    FOR EACH STATEMENT EXECUTE FUNCTION forbid_change();

ALTER TABLE pod ADD COLUMN forced_at timestamptz;
COMMENT ON COLUMN pod.forced_at IS 'When it was settled by force, by an annotation of a person.';

ALTER TABLE price ADD COLUMN on_exceed text NOT NULL DEFAULT 'bill'
    CHECK (on_exceed IN ('bill', 'block'));
ALTER TABLE price ADD CONSTRAINT price_block_check CHECK (on_exceed = 'bill' OR included > 0);
COMMENT ON COLUMN price.on_exceed IS 'bill: what is used beyond `included` is charged; block: not used.';

ALTER TABLE spend_block ADD COLUMN scope text NOT NULL DEFAULT 'spend';
ALTER TABLE spend_block DROP CONSTRAINT spend_block_pkey;
ALTER TABLE spend_block ADD PRIMARY KEY (tenant_id, scope, blocked_at);
DROP INDEX spend_block_open;
CREATE UNIQUE INDEX spend_block_open ON spend_block (tenant_id, scope) WHERE cleared_at IS NULL;
COMMENT ON TABLE spend_block IS 'From reaching a hard limit to having room again.';
COMMENT ON COLUMN spend_block.scope IS 'spend, or included/<meter> whose price says block.';

SELECT secure_tenant_tables();
SELECT grant_writes('botplane_billing', 'INSERT', ARRAY['dunning_notice']);
SELECT grant_writes('botplane_operator', 'UPDATE (told_at)', ARRAY['dunning_notice']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['dunning_notice']);
