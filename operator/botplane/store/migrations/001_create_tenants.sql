-- Who is billed, in which currency and by which calendar.

CREATE EXTENSION IF NOT EXISTS btree_gist;

CREATE FUNCTION forbid_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is forbidden: its rows never change', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

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
