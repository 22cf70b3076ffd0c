-- Who is billed, in which currency and by which calendar; who may report; and who did what.

CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE FUNCTION forbid_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is forbidden: its rows never change', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

-- Rows of these tables are never deleted.
CREATE FUNCTION keep_rows(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('CREATE TRIGGER no_delete BEFORE DELETE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
END $$;

-- Nor are they changed.
CREATE FUNCTION freeze_rows(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    PERFORM keep_rows(tables);
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('CREATE TRIGGER no_update BEFORE UPDATE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
END $$;

CREATE DOMAIN unit_price AS numeric(38, 18);
CREATE DOMAIN quantity AS numeric(38, 12);
CREATE DOMAIN minor AS bigint;
COMMENT ON DOMAIN minor IS 'Money on a document: whole minor units of its currency.';

CREATE TABLE currency (
    currency char(3) PRIMARY KEY,
    minor_units smallint NOT NULL CHECK (minor_units BETWEEN 0 AND 4)
);
COMMENT ON COLUMN currency.minor_units IS 'Decimals of the smallest amount on a document (ISO 4217).';

INSERT INTO currency VALUES
    ('AUD', 2), ('BHD', 3), ('BRL', 2), ('CAD', 2), ('CHF', 2), ('CLP', 0), ('CZK', 2), ('DKK', 2),
    ('EUR', 2), ('GBP', 2), ('HKD', 2), ('INR', 2), ('JPY', 0), ('KRW', 0), ('KWD', 3), ('MXN', 2),
    ('NOK', 2), ('NZD', 2), ('OMR', 3), ('PLN', 2), ('SEK', 2), ('SGD', 2), ('TND', 3), ('USD', 2),
    ('ZAR', 2);

CREATE TABLE tenant (
    tenant_id uuid PRIMARY KEY,
    name text NOT NULL CHECK (name ~ '^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$'),
    namespace text NOT NULL,
    currency char(3) NOT NULL REFERENCES currency,
    time_zone text NOT NULL,
    anchor_day smallint NOT NULL CHECK (anchor_day BETWEEN 1 AND 28),
    spend_limit numeric(20, 4) CHECK (spend_limit >= 0),
    registered_at timestamptz NOT NULL,
    closed_at timestamptz
);
COMMENT ON COLUMN tenant.tenant_id IS 'Uid of the Kubernetes Tenant: a re-created one is another.';
COMMENT ON COLUMN tenant.anchor_day IS 'Day of the month whose local midnight starts a period.';
COMMENT ON COLUMN tenant.spend_limit IS 'In the major unit of the currency; null is no limit.';
CREATE UNIQUE INDEX tenant_open_name ON tenant (name) WHERE closed_at IS NULL;
CREATE UNIQUE INDEX tenant_open_namespace ON tenant (namespace) WHERE closed_at IS NULL;

-- Periods and invoices are cut by this calendar: it stays as it was on the first day.
CREATE FUNCTION tenant_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.tenant_id, NEW.currency, NEW.time_zone, NEW.anchor_day)
        IS DISTINCT FROM (OLD.tenant_id, OLD.currency, OLD.time_zone, OLD.anchor_day)
    THEN
        RAISE EXCEPTION 'currency, time zone and anchor day of tenant % are fixed', OLD.name
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tenant_guard BEFORE UPDATE ON tenant
    FOR EACH ROW EXECUTE FUNCTION tenant_guard();
CREATE TRIGGER tenant_stays BEFORE DELETE ON tenant
    FOR EACH ROW EXECUTE FUNCTION forbid_change();

CREATE TABLE tenant_profile (
    tenant_id uuid PRIMARY KEY REFERENCES tenant,
    organization_name text NOT NULL,
    admin_email text NOT NULL
);
COMMENT ON TABLE tenant_profile IS 'The only personal data; erasable without touching a bill.';

CREATE TABLE ingest_key (
    tenant_id uuid NOT NULL,
    key_id text NOT NULL CHECK (key_id ~ '^[A-Za-z0-9-]{1,64}$'),
    bot_id uuid,
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
    scopes text[] NOT NULL CHECK (scopes <@ ARRAY['usage:write', 'usage:read', 'rpc:call']),
    issued_at timestamptz NOT NULL,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, key_id)
);
COMMENT ON TABLE ingest_key IS 'Bearers of usage events: tenant and bot come from the key.';
COMMENT ON COLUMN ingest_key.secret_hash IS 'SHA-256; the secret itself is stored nowhere.';
COMMENT ON COLUMN ingest_key.bot_id IS 'Null: the key is the tenant''s own.';
CREATE INDEX ingest_key_id ON ingest_key (key_id);

CREATE TABLE audit_log (
    chain text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    at timestamptz NOT NULL,
    actor text NOT NULL CHECK (actor <> ''),
    action text NOT NULL,
    object text NOT NULL,
    payload jsonb NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (chain, seq)
);
COMMENT ON TABLE audit_log IS 'Chains `tenant/<id>` and `system`; each entry seals those before.';
COMMENT ON COLUMN audit_log.hash IS 'audit_hash() over the hash of the entry before.';

CREATE FUNCTION audit_hash(previous bytea, entry audit_log) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT sha256(COALESCE(previous, sha256(convert_to(entry.chain, 'UTF8'))) || convert_to(
        jsonb_build_array(entry.chain, entry.seq, extract(epoch FROM entry.at)::text, entry.actor,
            entry.action, entry.object, entry.payload)::text, 'UTF8'))
$$;

-- Add an entry to a chain. The key of an entry is what writers of one chain wait for, as locks of
-- thousands of chains in one transaction would not fit into the table of locks: who finds the place
-- taken takes the next.
CREATE FUNCTION audit_append(p_chain text, p_actor text, p_action text, p_object text,
    p_payload jsonb, p_at timestamptz) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    entry audit_log;
    previous bytea;
BEGIN
    LOOP
        SELECT l.seq, l.hash INTO entry.seq, previous FROM audit_log l
        WHERE l.chain = p_chain ORDER BY l.seq DESC LIMIT 1;
        entry := (p_chain, COALESCE(entry.seq, 0) + 1, p_at, p_actor, p_action, p_object,
            p_payload, NULL);
        entry.hash := audit_hash(previous, entry);
        INSERT INTO audit_log SELECT entry.* ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
END $$;

SELECT freeze_rows(ARRAY['audit_log']);
