-- Who may do what: a role per process and one for a single tenant's eyes; rows by tenant, for
-- everybody, the owner of the tables included.

CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT NULLIF(current_setting('botplane.tenant', true), '')::uuid
$$;
COMMENT ON FUNCTION current_tenant IS
    'Whose rows role botplane_tenant sees; nobody''s when unset. Who sends SQL of his own may set '
    'it to any tenant: the role is for a program that asks for one.';

CREATE TABLE role_right (
    role text NOT NULL CHECK (role ~ '^botplane_[a-z]+$'),
    privileges text NOT NULL,
    object text NOT NULL,
    PRIMARY KEY (role, object, privileges)
);
COMMENT ON TABLE role_right IS 'What secure_database() grants.';
COMMENT ON COLUMN role_right.object IS
    'A table, FUNCTION f(types), or * for every table with a tenant_id.';

-- Nobody may delete what is billed; triggers refuse it a second time.
WITH process (roles) AS (
    VALUES (ARRAY['botplane_operator', 'botplane_metering', 'botplane_web', 'botplane_billing'])
)
INSERT INTO role_right (role, privileges, object)
SELECT unnest(p.roles), 'SELECT', o.object FROM process p, unnest(ARRAY['*', 'currency', 'meter',
    'plan', 'plan_version', 'plan_volume_discount', 'price', 'price_tier', 'source_watermark',
    'schema_migration']) AS o (object)
UNION ALL
SELECT unnest(p.roles), 'EXECUTE', o.object FROM process p, unnest(ARRAY[
    'FUNCTION audit_append(text, text, text, text, jsonb, timestamptz)',
    'FUNCTION ensure_partitions(date, date)',
    'FUNCTION ensure_periods(timestamptz)']) AS o (object)
UNION ALL
SELECT unnest(ARRAY['botplane_metering', 'botplane_web', 'botplane_gateway']), 'EXECUTE',
    'FUNCTION mark_late(uuid[], timestamptz[], timestamptz[])'
UNION ALL
SELECT r.role, r.privileges, unnest(r.objects) FROM (VALUES
    ('botplane_operator', 'INSERT, UPDATE', ARRAY['tenant', 'tenant_profile', 'plan',
        'plan_version', 'plan_volume_discount', 'price', 'price_tier', 'subscription_phase', 'bot',
        'ingest_key', 'spend_block', 'leadership']),
    ('botplane_operator', 'INSERT', ARRAY['limit_notice']),
    ('botplane_operator', 'INSERT, UPDATE (actual_minor)', ARRAY['forecast']),
    ('botplane_operator', 'UPDATE (told_at)', ARRAY['dunning_notice']),
    ('botplane_operator', 'DELETE', ARRAY['subscription_phase']),
    ('botplane_operator', 'SELECT', ARRAY['invoice_open', 'leadership']),
    ('botplane_operator', 'EXECUTE', ARRAY['FUNCTION build_segments(uuid[], text[])']),

    ('botplane_metering', 'INSERT, UPDATE', ARRAY['runtime_interval', 'pod', 'bot', 'meter_gap',
        'source_watermark']),

    ('botplane_web', 'INSERT, UPDATE', ARRAY['usage_event', 'usage_event_key', 'usage_hourly',
        'trade_commission', 'source_watermark', 'webhook_inbox']),
    ('botplane_web', 'SELECT', ARRAY['webhook_inbox', 'pruned_usage']),
    ('botplane_web', 'EXECUTE', ARRAY['FUNCTION build_segments(uuid[], text[])',
        'FUNCTION early_rows()', 'FUNCTION prune(timestamptz)']),

    ('botplane_gateway', 'SELECT', ARRAY['ingest_key', 'spend_block', 'pruned_usage']),
    ('botplane_gateway', 'SELECT (tenant_id, currency)', ARRAY['tenant']),
    ('botplane_gateway', 'SELECT, INSERT', ARRAY['usage_event', 'usage_event_key']),
    ('botplane_gateway', 'SELECT, INSERT, UPDATE', ARRAY['usage_hourly']),

    ('botplane_billing', 'INSERT, UPDATE', ARRAY['billing_period', 'invoice', 'payment_attempt',
        'refund', 'invoice_counter', 'coupon_grant', 'tenant_tax', 'tenant_payment',
        'webhook_inbox', 'commission_mark', 'archived_usage']),
    ('botplane_billing', 'INSERT', ARRAY['invoice_line', 'invoice_discount', 'invoice_tax',
        'invoice_credit', 'ledger_txn', 'ledger_entry', 'credit_grant', 'credit_note', 'one_off',
        'dunning_notice', 'late_usage']),
    ('botplane_billing', 'UPDATE', ARRAY['tenant', 'forecast']), -- it locks whom it bills
    ('botplane_billing', 'DELETE', ARRAY['late_usage', 'tenant_profile', 'tenant_payment']),
    ('botplane_billing', 'SELECT', ARRAY['invoice_counter', 'webhook_inbox', 'audit_log',
        'credit_left', 'credit_expired', 'coupon_left', 'invoice_open', 'pruned_usage',
        'archived_usage']),

    ('botplane_tenant', 'SELECT', ARRAY['tenant', 'subscription_phase', 'billing_period',
        'invoice', 'invoice_line', 'invoice_discount', 'invoice_tax', 'invoice_credit',
        'credit_note', 'credit_grant', 'credit_left', 'coupon_grant', 'coupon_left', 'one_off',
        'payment_attempt', 'refund', 'dunning_notice', 'invoice_open', 'bot', 'usage_hourly',
        'runtime_interval', 'trade_commission', 'commission_mark', 'limit_notice', 'spend_block',
        'forecast', 'ledger_txn', 'ledger_entry', 'tenant_tax', 'currency', 'meter'])
) AS r (role, privileges, objects);

-- Make the roles, secure every table with a tenant_id, and grant what role_right says. It may be
-- called again: a migration that makes such a table or adds rights ends with it. Roles belong to
-- the server; where the owner of the database may not create them, an administrator does, and
-- calls this after.
CREATE FUNCTION secure_database() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    entry record;
BEGIN
    FOR entry IN SELECT DISTINCT r.role FROM role_right r ORDER BY r.role LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = entry.role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', entry.role);
            END IF;
            IF NOT pg_has_role(current_user, entry.role, 'MEMBER') THEN
                EXECUTE format('GRANT %I TO CURRENT_USER', entry.role);
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL; -- another database was faster
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role % is missing: create it, then run secure_database()',
                    entry.role;
        END;
    END LOOP;

    FOR entry IN
        SELECT c.oid::regclass AS name FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant_id'
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', entry.name);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', entry.name);
        EXECUTE format('DROP POLICY IF EXISTS owner ON %s', entry.name);
        EXECUTE format('CREATE POLICY owner ON %s TO CURRENT_USER USING (true)', entry.name);
        INSERT INTO role_right (role, privileges, object)
        SELECT r.role, r.privileges, entry.name FROM role_right r WHERE r.object = '*'
        ON CONFLICT DO NOTHING;
    END LOOP;

    -- Who calls a function with the rights of its owner, or is watched by a trigger, could put a
    -- temporary table before the one that is meant: it is looked for last.
    FOR entry IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = current_schema()::regnamespace
            AND (p.prosecdef OR p.prorettype = 'trigger'::regtype)
            -- These read no table, and a setting for each call would cost a tenth of what events do.
            AND p.proname NOT IN ('usage_hourly_late', 'runtime_interval_late')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = %I, pg_temp', entry.name,
            current_schema());
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', entry.name);
    END LOOP;
    FOR entry IN SELECT r.* FROM role_right r JOIN pg_roles m ON m.rolname = r.role
        WHERE r.object <> '*' LOOP
        EXECUTE format('GRANT %s ON %s TO %I', entry.privileges, entry.object, entry.role);
    END LOOP;

    FOR entry IN
        SELECT DISTINCT r.role, c.oid::regclass AS name
        FROM role_right r
        JOIN pg_roles m ON m.rolname = r.role
        JOIN pg_class c ON c.relname = r.object AND c.relrowsecurity
            AND c.relnamespace = current_schema()::regnamespace
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON %s', entry.role, entry.name);
        EXECUTE format('CREATE POLICY %1$I ON %2$s ' || CASE entry.role
            WHEN 'botplane_tenant' THEN 'FOR SELECT TO %1$I USING (tenant_id = current_tenant())'
            ELSE 'TO %1$I USING (true)' END, entry.role, entry.name);
    END LOOP;
END $$;
SELECT secure_database();
