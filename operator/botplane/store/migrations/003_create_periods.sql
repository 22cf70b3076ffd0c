-- Which plan a tenant had when, and the periods that it is billed for.

CREATE TABLE subscription_phase (
    tenant_id uuid NOT NULL REFERENCES tenant,
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0),
    plan text NOT NULL REFERENCES plan,
    PRIMARY KEY (tenant_id, starts_at),
    CHECK (ends_at > starts_at),
    EXCLUDE USING gist (tenant_id WITH =, tstzrange(starts_at, ends_at) WITH &&)
);
COMMENT ON TABLE subscription_phase IS 'Which plan a tenant had when; null ends_at is today''s.';

-- What a phase was is history; only its end may get known, and its plan while it has none.
CREATE FUNCTION subscription_phase_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.ends_at IS NOT NULL
        OR (NEW.tenant_id, NEW.starts_at) IS DISTINCT FROM (OLD.tenant_id, OLD.starts_at)
    THEN
        RAISE EXCEPTION 'the phase of tenant % from % on is history', OLD.tenant_id, OLD.starts_at
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER subscription_phase_guard BEFORE UPDATE ON subscription_phase
    FOR EACH ROW EXECUTE FUNCTION subscription_phase_guard();

CREATE TABLE billing_period (
    tenant_id uuid NOT NULL REFERENCES tenant,
    period text NOT NULL CHECK (period ~ '^[0-9]{4}-[0-9]{2}$'),
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0) NOT NULL,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'parked', 'closed')),
    parked_reason text,
    revision integer NOT NULL DEFAULT 0 CHECK (revision >= 0),
    PRIMARY KEY (tenant_id, period),
    CHECK (ends_at > starts_at),
    CHECK ((state = 'parked') = (parked_reason IS NOT NULL)),
    EXCLUDE USING gist (tenant_id WITH =, tstzrange(starts_at, ends_at) WITH &&)
);
COMMENT ON TABLE billing_period IS 'Named after the local month of its first day; half-open.';
COMMENT ON COLUMN billing_period.revision IS 'How many of its invoices were made void.';
CREATE INDEX billing_period_due ON billing_period (ends_at, tenant_id) WHERE state <> 'closed';
CREATE INDEX billing_period_end ON billing_period (ends_at);

CREATE TABLE late_usage (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    PRIMARY KEY (tenant_id, period),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period
);
COMMENT ON TABLE late_usage IS 'Closed periods whose usage has changed; the next invoice takes them.';

-- A closed period opens again, as its next revision, once its invoice is void; nothing else of it
-- changes.
CREATE FUNCTION billing_period_guard() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_fixed boolean := (NEW.tenant_id, NEW.period, NEW.starts_at, NEW.ends_at)
        IS DISTINCT FROM (OLD.tenant_id, OLD.period, OLD.starts_at, OLD.ends_at);
BEGIN
    IF OLD.state = 'closed' OR NEW.revision <> OLD.revision THEN
        is_fixed := is_fixed OR OLD.state <> 'closed' OR NEW.state <> 'open'
            OR NEW.revision <> OLD.revision + 1
            OR NOT EXISTS (SELECT FROM invoice i WHERE i.tenant_id = OLD.tenant_id
                AND i.period = OLD.period AND i.status = 'void' AND i.revision = OLD.revision)
            OR EXISTS (SELECT FROM invoice i WHERE i.tenant_id = OLD.tenant_id
                AND i.period = OLD.period AND i.status <> 'void');
    END IF;
    IF is_fixed THEN
        RAISE EXCEPTION 'period % of tenant % is fixed', OLD.period, OLD.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_period_guard BEFORE UPDATE ON billing_period
    FOR EACH ROW EXECUTE FUNCTION billing_period_guard();

-- The first instant of a period: local midnight of the anchor day, or the first one after it. Where
-- clocks go back from one to midnight it comes twice, and Postgres takes the later one.
CREATE FUNCTION period_start(month timestamp, zone text, anchor_day smallint) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN (m.at - interval '1 hour') AT TIME ZONE zone = m.midnight
        THEN m.at - interval '1 hour' ELSE m.at END
    FROM (SELECT d.midnight, d.midnight AT TIME ZONE zone AS at
        FROM (SELECT month + (anchor_day - 1) * interval '1 day' AS midnight) AS d) AS m
$$;

-- The periods that should exist at a moment and do not: from the first day of the subscription to
-- the one that holds the moment or the closing of the tenant. A period starts where the one before
-- it ended, also when the rules of a time zone have changed since. Of tenants that have all they
-- need the last period is not asked for.
CREATE FUNCTION missing_periods(at timestamptz)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE AS $$
    WITH behind AS MATERIALIZED (
        SELECT t.tenant_id, t.time_zone, t.anchor_day,
            least(at, t.closed_at - interval '1 second') AS until
        FROM tenant t
        WHERE NOT EXISTS (SELECT FROM billing_period b WHERE b.tenant_id = t.tenant_id
            AND b.ends_at > least(at, t.closed_at - interval '1 second'))
    )
    SELECT t.tenant_id, to_char(m.month, 'YYYY-MM'),
        greatest(s.reached, period_start(m.month, t.time_zone, t.anchor_day)), e.ends_at
    FROM behind t
    CROSS JOIN LATERAL (SELECT
        (SELECT min(p.starts_at) FROM subscription_phase p WHERE p.tenant_id = t.tenant_id) AS since,
        (SELECT b.ends_at FROM billing_period b WHERE b.tenant_id = t.tenant_id
            ORDER BY b.period DESC LIMIT 1) AS reached) AS s
    CROSS JOIN LATERAL generate_series(
        date_trunc('month', COALESCE(s.reached, s.since) AT TIME ZONE t.time_zone)
            - interval '2 months',
        date_trunc('month', t.until AT TIME ZONE t.time_zone) + interval '1 month',
        interval '1 month') AS m (month)
    CROSS JOIN LATERAL (SELECT period_start(m.month + interval '1 month', t.time_zone,
        t.anchor_day) AS ends_at) AS e
    WHERE COALESCE(s.reached, s.since) <= t.until
        AND e.ends_at > COALESCE(s.reached, s.since)
        AND period_start(m.month, t.time_zone, t.anchor_day) <= t.until
$$;

CREATE FUNCTION ensure_periods(at timestamptz) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM missing_periods(at)) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('ensure_periods', 0));
        INSERT INTO billing_period (tenant_id, period, starts_at, ends_at)
        SELECT m.tenant_id, m.period, m.starts_at, m.ends_at FROM missing_periods(at) m;
    END IF;
END $$;

SELECT keep_rows(ARRAY['billing_period']);
