-- Who may do what: a role per process and one for a single tenant's eyes; rows by tenant, for
-- everybody, the owner of the tables included.

-- Roles belong to the server. Where the owner of the database may not create them, an
-- administrator does, and calls secure_tenant_tables() after.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['botplane_operator', 'botplane_metering', 'botplane_billing',
        'botplane_web', 'botplane_tenant'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = name) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            END IF;
            IF NOT pg_has_role(current_user, name, 'MEMBER') THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', name);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL; -- another database was faster
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role % is missing: create it, then run secure_tenant_tables()', name;
        END;
    END LOOP;
END $$;

CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT NULLIF(current_setting('botplane.tenant', true), '')::uuid
$$;
COMMENT ON FUNCTION current_tenant IS 'Whose rows role botplane_tenant sees; nobody''s when unset.';

-- Secure every table with a tenant_id that is not secure yet, and let the processes read all.
-- A migration that makes such a table ends with this.
CREATE FUNCTION secure_tenant_tables() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name regclass;
    member text;
BEGIN
    FOR name IN
        SELECT c.oid FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('DROP POLICY IF EXISTS owner ON %s', name);
        EXECUTE format('CREATE POLICY owner ON %s TO CURRENT_USER USING (true)', name);
        FOR member IN SELECT r.rolname FROM pg_roles r WHERE r.rolname IN ('botplane_operator',
            'botplane_metering', 'botplane_billing', 'botplane_web') LOOP
            EXECUTE format('DROP POLICY IF EXISTS %I ON %s', member, name);
            EXECUTE format('CREATE POLICY %I ON %s TO %I USING (true)', member, name, member);
            EXECUTE format('GRANT SELECT ON %s TO %I', name, member);
        END LOOP;
        IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'botplane_tenant') THEN
            EXECUTE format('DROP POLICY IF EXISTS own ON %s', name);
            EXECUTE format('CREATE POLICY own ON %s FOR SELECT TO botplane_tenant
                USING (tenant_id = current_tenant())', name);
        END IF;
    END LOOP;
END $$;
SELECT secure_tenant_tables();

-- What a trigger must do whoever writes: guards and marks run as the owner.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOREACH f IN ARRAY ARRAY['audit_append(text,text,text,text,jsonb,timestamptz)',
        'mark_late(uuid[],timestamptz[],timestamptz[])', 'invoice_credit_guard()',
        'invoice_discount_guard()', 'credit_note_guard()', 'price_guard()', 'invoice_line_guard()',
        'ensure_partitions(date,date)', 'ensure_periods(timestamptz)']::regprocedure[] LOOP
        EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path FROM CURRENT', f);
    END LOOP;
END $$;

REVOKE EXECUTE ON FUNCTION audit_append(text, text, text, text, jsonb, timestamptz),
    ensure_partitions(date, date), ensure_periods(timestamptz), secure_tenant_tables() FROM PUBLIC;

-- Writing, table by table. Nobody may delete what is billed; triggers refuse it a second time.
CREATE FUNCTION grant_writes(member text, privileges text, tables text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = member) THEN
        FOREACH name IN ARRAY tables LOOP
            EXECUTE format('GRANT %s ON %I TO %I', privileges, name, member);
        END LOOP;
    END IF;
END $$;
CREATE FUNCTION grant_calls(member text, functions text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    IF EXISTS (SELECT FROM pg_roles r WHERE r.rolname = member) THEN
        FOREACH name IN ARRAY functions LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %I TO %I', name, member);
        END LOOP;
    END IF;
END $$;
SELECT grant_writes(member, 'SELECT', ARRAY['currency', 'meter', 'plan', 'plan_version',
        'plan_volume_discount', 'price', 'price_tier', 'source_watermark', 'schema_migration'])
FROM (VALUES ('botplane_operator'), ('botplane_metering'), ('botplane_billing'),
    ('botplane_web')) AS m (member);
SELECT grant_writes('botplane_operator', 'INSERT, UPDATE', ARRAY['tenant', 'tenant_profile', 'plan',
    'plan_version', 'plan_volume_discount', 'price', 'price_tier', 'subscription_phase', 'bot']);
SELECT grant_writes('botplane_operator', 'DELETE', ARRAY['subscription_phase']);
SELECT grant_writes('botplane_metering', 'INSERT, UPDATE', ARRAY['runtime_interval', 'pod', 'bot',
    'meter_gap', 'source_watermark']);
SELECT grant_writes('botplane_web', 'INSERT, UPDATE', ARRAY['usage_event', 'usage_event_key',
    'usage_hourly', 'trade_commission', 'source_watermark', 'webhook_inbox']);
SELECT grant_writes('botplane_web', 'SELECT', ARRAY['webhook_inbox']);
SELECT grant_writes('botplane_billing', 'INSERT, UPDATE', ARRAY['billing_period', 'invoice',
    'payment_attempt', 'invoice_counter', 'coupon_grant', 'tenant_tax', 'tenant_payment',
    'webhook_inbox']);
SELECT grant_writes('botplane_billing', 'UPDATE', ARRAY['tenant']); -- it locks whom it bills
SELECT grant_writes('botplane_billing', 'INSERT', ARRAY['invoice_line', 'invoice_discount',
    'invoice_tax', 'invoice_credit', 'ledger_txn', 'ledger_entry', 'credit_grant', 'credit_note']);
SELECT grant_writes('botplane_billing', 'SELECT', ARRAY['invoice_counter', 'webhook_inbox',
    'audit_log', 'credit_left', 'coupon_left', 'invoice_open']);
SELECT grant_writes('botplane_billing', 'DELETE', ARRAY['late_usage', 'tenant_profile',
    'tenant_payment']);
SELECT grant_writes('botplane_tenant', 'SELECT', ARRAY['tenant', 'subscription_phase',
    'billing_period', 'invoice', 'invoice_line', 'invoice_discount', 'invoice_tax',
    'invoice_credit', 'credit_note', 'credit_grant', 'credit_left', 'coupon_grant', 'coupon_left',
    'payment_attempt', 'invoice_open', 'bot', 'usage_hourly', 'runtime_interval',
    'trade_commission', 'ledger_txn', 'ledger_entry', 'tenant_tax', 'currency', 'meter']);
SELECT grant_calls(member, ARRAY['audit_append', 'ensure_partitions', 'ensure_periods'])
FROM (VALUES ('botplane_operator'), ('botplane_metering'), ('botplane_billing'),
    ('botplane_web')) AS m (member);
DROP FUNCTION grant_calls;
