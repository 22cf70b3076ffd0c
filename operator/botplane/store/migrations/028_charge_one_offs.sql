-- Charges that no meter and no plan makes, such as for help with the first bots: each once, on the
-- next invoice of its tenant.

CREATE TABLE one_off (
    tenant_id uuid NOT NULL,
    reference text NOT NULL CHECK (reference ~ '^[A-Za-z0-9][-A-Za-z0-9_.]{0,62}$'),
    period text NOT NULL,
    description text NOT NULL CHECK (description ~ '^[^[:cntrl:]]{1,80}$'),
    amount_minor minor NOT NULL CHECK (amount_minor > 0),
    charged_at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, reference),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period
);
COMMENT ON TABLE one_off IS 'One line each, on the invoice of its period, also when that is issued anew.';
COMMENT ON COLUMN one_off.period IS 'The first one that was not billed when it was charged.';
CREATE INDEX one_off_period ON one_off (tenant_id, period);

-- Whoever bills the period locks it, as this does: either the invoice has the charge, or this sees
-- that the period is closed.
CREATE FUNCTION one_off_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM billing_period b WHERE b.tenant_id = NEW.tenant_id AND b.period = NEW.period
        AND b.state <> 'closed' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'period % of tenant % is billed', NEW.period, NEW.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER one_off_guard BEFORE INSERT ON one_off
    FOR EACH ROW EXECUTE FUNCTION one_off_guard();
CREATE TRIGGER no_update BEFORE UPDATE ON one_off FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_delete BEFORE DELETE ON one_off FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON one_off
    FOR EACH STATEMENT EXECUTE FUNCTION forbid_change();
ALTER FUNCTION one_off_guard() SECURITY DEFINER SET search_path FROM CURRENT;

CREATE FUNCTION charge_one_offs(tenants uuid[], periods text[])
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT o.tenant_id, o.period, 'one_off/' || o.reference, 'one_off', NULL::text, b.starts_at,
        b.ends_at, 1::numeric, divide(o.amount_minor, power(10::numeric, u.minor_units)),
        o.amount_minor::bigint, jsonb_build_object('description', o.description)
    FROM unnest(tenants, periods) AS asked (tenant_id, period)
    JOIN one_off o ON o.tenant_id = asked.tenant_id AND o.period = asked.period
    JOIN billing_period b ON b.tenant_id = o.tenant_id AND b.period = o.period
    JOIN tenant t ON t.tenant_id = o.tenant_id
    JOIN currency u ON u.currency = t.currency
$$;

-- All charges, as before, and these.
ALTER FUNCTION charge(uuid[], text[], timestamptz) RENAME TO charge_by_plan;
ALTER FUNCTION charge(uuid[], text[], timestamptz, tstzrange) RENAME TO charge_by_plan;
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    SELECT * FROM charge_by_plan(tenants, periods, until)
    UNION ALL
    SELECT * FROM charge_one_offs(tenants, periods)
$$;
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz, within tstzrange)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    SELECT * FROM charge_by_plan(tenants, periods, until, within)
    UNION ALL
    SELECT * FROM charge_one_offs(tenants, periods)
$$;

ALTER TABLE invoice_line DROP CONSTRAINT invoice_line_kind_check;
ALTER TABLE invoice_line ADD CONSTRAINT invoice_line_kind_check CHECK (kind IN ('subscription',
    'usage', 'commission', 'commitment', 'one_off', 'correction'));
ALTER TABLE ledger_entry DROP CONSTRAINT ledger_entry_account_check;
ALTER TABLE ledger_entry ADD CONSTRAINT ledger_entry_account_check CHECK (account IN (
    'receivable', 'carried', 'cash', 'customer_credit', 'tax_payable', 'revenue_subscription',
    'revenue_usage', 'revenue_commission', 'revenue_one_off', 'discount_given', 'credit_given',
    'bad_debt', 'processor_fee'));
ALTER TABLE coupon_grant DROP CONSTRAINT coupon_grant_target_check;
ALTER TABLE coupon_grant ADD CONSTRAINT coupon_grant_target_check
    CHECK (target IN ('invoice', 'subscription', 'commission', 'one_off')
        OR target ~ '^usage(/[a-z_]+)?$');
ALTER TABLE tenant_tax DROP CONSTRAINT tenant_tax_target_check;
ALTER TABLE tenant_tax ADD CONSTRAINT tenant_tax_target_check CHECK (target IN ('all',
    'subscription', 'usage', 'commitment', 'commission', 'one_off'));

SELECT secure_tenant_tables();
SELECT grant_writes('botplane_billing', 'INSERT', ARRAY['one_off']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['one_off']);
