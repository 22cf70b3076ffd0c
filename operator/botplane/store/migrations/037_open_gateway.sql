-- The gateway: keys of bots that open it, and a role that reads who may call and writes what was
-- called, and nothing else.

ALTER TABLE ingest_key DROP CONSTRAINT ingest_key_scopes_check;
ALTER TABLE ingest_key ADD CONSTRAINT ingest_key_scopes_check
    CHECK (scopes <@ ARRAY['usage:write', 'usage:read', 'rpc:call']);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'botplane_gateway') THEN
        CREATE ROLE botplane_gateway NOLOGIN;
    END IF;
    IF NOT pg_has_role(current_user, 'botplane_gateway', 'MEMBER') THEN
        GRANT botplane_gateway TO CURRENT_USER;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL; -- another database was faster
    WHEN insufficient_privilege THEN
        RAISE WARNING 'role botplane_gateway is missing: create it, then run secure_gateway()';
END $$;

CREATE FUNCTION secure_gateway() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'botplane_gateway') THEN
        RETURN;
    END IF;
    FOREACH name IN ARRAY ARRAY['ingest_key', 'spend_block', 'tenant', 'usage_event',
        'usage_event_key', 'usage_hourly'] LOOP
        EXECUTE format('DROP POLICY IF EXISTS botplane_gateway ON %I', name);
        EXECUTE format('CREATE POLICY botplane_gateway ON %I TO botplane_gateway USING (true)', name);
    END LOOP;
    GRANT SELECT ON ingest_key, spend_block, pruned_usage TO botplane_gateway;
    GRANT SELECT (tenant_id, currency) ON tenant TO botplane_gateway;
    GRANT SELECT, INSERT ON usage_event, usage_event_key TO botplane_gateway;
    GRANT SELECT, INSERT, UPDATE ON usage_hourly TO botplane_gateway;
END $$;
REVOKE EXECUTE ON FUNCTION secure_gateway() FROM PUBLIC;
SELECT secure_gateway();
