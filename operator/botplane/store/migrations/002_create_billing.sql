-- Prices, periods, invoices and the ledger.

CREATE DOMAIN unit_price AS numeric(38, 18);
CREATE DOMAIN quantity AS numeric(38, 12);
CREATE DOMAIN minor AS bigint;
COMMENT ON DOMAIN minor IS 'Money on a document: whole minor units of its currency.';

-- round() of Postgres rounds half away from zero; money rounds half to even.
CREATE FUNCTION half_even(x numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN abs(x - trunc(x)) = 0.5 THEN 2 * round(x / 2) ELSE round(x) END
$$;

-- n / d to 18 decimals, half to even. The operator `/` would round to fewer decimals.
CREATE FUNCTION divide(n numeric, d numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (CASE
        WHEN 2 * abs(r.r) > d OR (2 * abs(r.r) = d AND mod(q.q, 2) <> 0) THEN q.q + sign(n)
        ELSE q.q
    END * 0.000000000000000001)::numeric(38, 18)
    FROM (SELECT div(n * 1000000000000000000, d)) AS q (q),
         LATERAL (SELECT n * 1000000000000000000 - q.q * d) AS r (r)
$$;

CREATE TABLE meter (
    meter text PRIMARY KEY,
    unit text NOT NULL,
    source text NOT NULL CHECK (source IN ('interval', 'event'))
);
INSERT INTO meter VALUES
    ('bot_seconds', 'seconds that bots ran', 'interval'),
    ('cpu_core_seconds', 'requested cores times seconds', 'interval'),
    ('memory_gib_seconds', 'requested GiB times seconds', 'interval'),
    ('rpc_calls', 'calls', 'event'),
    ('storage_gb_hours', 'GB times hours', 'event'),
    ('bandwidth_gb', 'GB transferred', 'event'),
    ('ai_units', 'processing units', 'event'),
    ('premium_features', 'uses', 'event');

CREATE TABLE plan (
    plan text PRIMARY KEY,
    currency char(3) NOT NULL REFERENCES currency
);

CREATE TABLE plan_version (
    plan text NOT NULL REFERENCES plan,
    version integer NOT NULL CHECK (version > 0),
    effective tstzrange NOT NULL,
    fee_minor minor NOT NULL CHECK (fee_minor >= 0),
    minimum_commitment_minor minor NOT NULL CHECK (minimum_commitment_minor >= 0),
    commission_rate numeric(7, 6) NOT NULL CHECK (commission_rate BETWEEN 0 AND 1),
    commission_cap_per_trade_minor minor CHECK (commission_cap_per_trade_minor >= 0),
    commission_cap_per_period_minor minor CHECK (commission_cap_per_period_minor >= 0),
    content_hash bytea NOT NULL,
    published_at timestamptz NOT NULL,
    published_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (plan, version),
    CHECK (NOT isempty(effective)),
    CHECK (lower(effective) = date_trunc('second', lower(effective))),
    EXCLUDE USING gist (plan WITH =, effective WITH &&)
);
COMMENT ON TABLE plan_version IS 'Effective-dated prices of a plan; a change is a new version.';

CREATE TABLE plan_volume_discount (
    plan text NOT NULL,
    version integer NOT NULL,
    from_volume_minor minor NOT NULL CHECK (from_volume_minor >= 0),
    discount numeric(7, 6) NOT NULL CHECK (discount BETWEEN 0 AND 1),
    PRIMARY KEY (plan, version, from_volume_minor),
    FOREIGN KEY (plan, version) REFERENCES plan_version
);

CREATE TABLE price (
    plan text NOT NULL,
    version integer NOT NULL,
    meter text NOT NULL REFERENCES meter,
    model text NOT NULL CHECK (model IN ('per_unit', 'flat', 'package', 'graduated', 'volume')),
    included quantity NOT NULL CHECK (included >= 0),
    unit_size quantity NOT NULL CHECK (unit_size > 0),
    PRIMARY KEY (plan, version, meter),
    FOREIGN KEY (plan, version) REFERENCES plan_version
);
COMMENT ON COLUMN price.included IS 'Per period, in the unit of the meter.';
COMMENT ON COLUMN price.unit_size IS 'How much of the meter unit_price buys: 3600 is by the hour.';

CREATE TABLE price_tier (
    plan text NOT NULL,
    version integer NOT NULL,
    meter text NOT NULL,
    lo quantity NOT NULL CHECK (lo >= 0),
    hi quantity CHECK (hi > lo),
    unit_price unit_price NOT NULL CHECK (unit_price >= 0),
    flat_fee_minor minor NOT NULL CHECK (flat_fee_minor >= 0),
    PRIMARY KEY (plan, version, meter, lo),
    FOREIGN KEY (plan, version, meter) REFERENCES price,
    EXCLUDE USING gist (plan WITH =, version WITH =, meter WITH =, numrange(lo, hi) WITH &&)
);
COMMENT ON TABLE price_tier IS 'lo < billable quantity <= hi; null hi has no upper end.';

-- A version is complete when its transaction commits, and its prices never change after that.
-- The one thing that may happen to it is that its last day gets known.
CREATE FUNCTION plan_version_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(NEW) - 'effective' IS DISTINCT FROM to_jsonb(OLD) - 'effective'
        OR lower(NEW.effective) IS DISTINCT FROM lower(OLD.effective)
        OR NOT upper_inf(OLD.effective)
    THEN
        RAISE EXCEPTION 'plan % version % is published: publish another', OLD.plan, OLD.version
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER plan_version_guard BEFORE UPDATE ON plan_version
    FOR EACH ROW EXECUTE FUNCTION plan_version_guard();

CREATE FUNCTION price_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM plan_version v
    WHERE v.plan = NEW.plan AND v.version = NEW.version
        AND v.published_in = pg_current_xact_id();
    IF NOT FOUND THEN
        RAISE EXCEPTION 'plan % version % is published: publish another', NEW.plan, NEW.version
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

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
    PRIMARY KEY (tenant_id, period),
    CHECK (ends_at > starts_at),
    CHECK ((state = 'parked') = (parked_reason IS NOT NULL)),
    EXCLUDE USING gist (tenant_id WITH =, tstzrange(starts_at, ends_at) WITH &&)
);
COMMENT ON TABLE billing_period IS 'Named after the local month of its first day; half-open.';
CREATE INDEX billing_period_due ON billing_period (ends_at, tenant_id) WHERE state <> 'closed';

CREATE FUNCTION billing_period_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state = 'closed'
        OR (NEW.tenant_id, NEW.period, NEW.starts_at, NEW.ends_at)
            IS DISTINCT FROM (OLD.tenant_id, OLD.period, OLD.starts_at, OLD.ends_at)
    THEN
        RAISE EXCEPTION 'period % of tenant % is fixed', OLD.period, OLD.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_period_guard BEFORE UPDATE ON billing_period
    FOR EACH ROW EXECUTE FUNCTION billing_period_guard();

-- The first instant of a period: local midnight of the anchor day, or the first one after it.
CREATE FUNCTION period_start(month timestamp, zone text, anchor_day smallint) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT (month + (anchor_day - 1) * interval '1 day') AT TIME ZONE zone
$$;

-- The periods that should exist at a moment and do not: from the first day of the subscription to
-- the one that holds the moment or the closing of the tenant. A period starts where the one before
-- it ended, also when the rules of a time zone have changed since.
CREATE FUNCTION missing_periods(at timestamptz)
RETURNS TABLE (tenant_id uuid, period text, starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE AS $$
    SELECT t.tenant_id, to_char(m.month, 'YYYY-MM'),
        greatest(s.reached, period_start(m.month, t.time_zone, t.anchor_day)), e.ends_at
    FROM tenant t
    CROSS JOIN LATERAL (SELECT min(p.starts_at) AS since,
        least(at, t.closed_at - interval '1 second') AS until,
        (SELECT max(b.ends_at) FROM billing_period b WHERE b.tenant_id = t.tenant_id) AS reached
        FROM subscription_phase p WHERE p.tenant_id = t.tenant_id) AS s
    CROSS JOIN LATERAL generate_series(
        date_trunc('month', COALESCE(s.reached, s.since) AT TIME ZONE t.time_zone)
            - interval '2 months',
        date_trunc('month', s.until AT TIME ZONE t.time_zone) + interval '1 month',
        interval '1 month') AS m (month)
    CROSS JOIN LATERAL (SELECT period_start(m.month + interval '1 month', t.time_zone,
        t.anchor_day) AS ends_at) AS e
    WHERE COALESCE(s.reached, s.since) <= s.until
        AND e.ends_at > COALESCE(s.reached, s.since)
        AND period_start(m.month, t.time_zone, t.anchor_day) <= s.until
$$;

CREATE FUNCTION ensure_periods(at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM missing_periods(at)) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('ensure_periods', 0));
        INSERT INTO billing_period (tenant_id, period, starts_at, ends_at)
        SELECT m.tenant_id, m.period, m.starts_at, m.ends_at FROM missing_periods(at) m;
    END IF;
END $$;

CREATE TABLE invoice_counter (
    series text PRIMARY KEY,
    last bigint NOT NULL CHECK (last >= 0)
);
CREATE FUNCTION invoice_counter_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.series <> OLD.series OR NEW.last <= OLD.last THEN
        RAISE EXCEPTION 'invoice numbers only go up' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER invoice_counter_guard BEFORE UPDATE ON invoice_counter
    FOR EACH ROW EXECUTE FUNCTION invoice_counter_guard();

CREATE TABLE invoice (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL DEFAULT gen_random_uuid(),
    period text NOT NULL,
    status text NOT NULL DEFAULT 'draft'
        CHECK (status IN ('draft', 'finalized', 'paid', 'void', 'uncollectible')),
    number text,
    currency char(3) NOT NULL REFERENCES currency,
    subtotal_minor minor NOT NULL,
    discount_minor minor NOT NULL DEFAULT 0 CHECK (discount_minor >= 0),
    tax_minor minor NOT NULL DEFAULT 0,
    total_minor minor NOT NULL,
    credit_minor minor NOT NULL DEFAULT 0 CHECK (credit_minor >= 0),
    carried_minor minor NOT NULL DEFAULT 0,
    due_minor minor NOT NULL CHECK (due_minor >= 0),
    issued_at timestamptz(0) NOT NULL,
    snapshot jsonb NOT NULL,
    content_hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id),
    UNIQUE (tenant_id, number),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period,
    CHECK (total_minor = subtotal_minor - discount_minor + tax_minor),
    CHECK (due_minor = total_minor - credit_minor + carried_minor),
    CHECK (status = 'draft' OR number IS NOT NULL)
);
COMMENT ON COLUMN invoice.snapshot IS 'What the document says besides money: names, zone, dates.';
COMMENT ON COLUMN invoice.content_hash IS 'SHA-256 of the canonical JSON document.';
CREATE UNIQUE INDEX invoice_once ON invoice (tenant_id, period) WHERE status <> 'void';

CREATE TABLE invoice_line (
    tenant_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    line_key text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('subscription', 'usage', 'commitment')),
    meter text REFERENCES meter,
    starts_at timestamptz(0) NOT NULL,
    ends_at timestamptz(0) NOT NULL,
    quantity quantity NOT NULL,
    exact numeric(38, 18) NOT NULL,
    amount_minor minor NOT NULL,
    detail jsonb NOT NULL,
    PRIMARY KEY (tenant_id, invoice_id, line_key),
    FOREIGN KEY (tenant_id, invoice_id) REFERENCES invoice,
    CHECK ((kind = 'usage') = (meter IS NOT NULL))
);
COMMENT ON COLUMN invoice_line.exact IS 'In the major unit; rounded once, half to even, to amount.';

CREATE FUNCTION invoice_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF to_jsonb(NEW) - 'status' IS DISTINCT FROM to_jsonb(OLD) - 'status' THEN
        RAISE EXCEPTION 'invoice % is immutable', OLD.number USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN (
        ('draft', 'finalized'), ('finalized', 'paid'), ('finalized', 'void'),
        ('finalized', 'uncollectible'), ('uncollectible', 'paid'), ('uncollectible', 'void'))
    THEN
        RAISE EXCEPTION 'invoice % cannot become % after %', OLD.number, NEW.status, OLD.status
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER invoice_guard BEFORE UPDATE ON invoice
    FOR EACH ROW EXECUTE FUNCTION invoice_guard();

CREATE FUNCTION invoice_line_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM invoice i
    WHERE i.tenant_id = NEW.tenant_id AND i.invoice_id = NEW.invoice_id AND i.status = 'draft';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'lines are added while the invoice is a draft'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER invoice_line_guard BEFORE INSERT ON invoice_line
    FOR EACH ROW EXECUTE FUNCTION invoice_line_guard();

CREATE FUNCTION invoice_lines_sum() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    subtotal numeric;
BEGIN
    SELECT COALESCE(sum(l.amount_minor), 0) INTO subtotal FROM invoice_line l
    WHERE l.tenant_id = NEW.tenant_id AND l.invoice_id = NEW.invoice_id;
    IF subtotal <> NEW.subtotal_minor THEN
        RAISE EXCEPTION 'lines of invoice % sum to %, not to %', NEW.number, subtotal,
            NEW.subtotal_minor USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER invoice_lines_sum AFTER INSERT OR UPDATE ON invoice
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.status = 'finalized') EXECUTE FUNCTION invoice_lines_sum();

CREATE TABLE ledger_txn (
    tenant_id uuid NOT NULL REFERENCES tenant,
    txn_key text NOT NULL,
    at timestamptz(0) NOT NULL,
    PRIMARY KEY (tenant_id, txn_key)
);
COMMENT ON COLUMN ledger_txn.txn_key IS 'What happened, such as invoice/<id>: it can happen once.';

CREATE TABLE ledger_entry (
    tenant_id uuid NOT NULL,
    txn_key text NOT NULL,
    account text NOT NULL
        CHECK (account IN ('receivable', 'revenue_subscription', 'revenue_usage')),
    currency char(3) NOT NULL REFERENCES currency,
    amount_minor minor NOT NULL CHECK (amount_minor <> 0),
    PRIMARY KEY (tenant_id, txn_key, account, currency),
    FOREIGN KEY (tenant_id, txn_key) REFERENCES ledger_txn
);
COMMENT ON COLUMN ledger_entry.amount_minor IS 'Debit positive, credit negative.';

CREATE FUNCTION ledger_balanced() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM ledger_entry e
    WHERE e.tenant_id = NEW.tenant_id AND e.txn_key = NEW.txn_key
    GROUP BY e.currency HAVING sum(e.amount_minor) <> 0;
    IF FOUND THEN
        RAISE EXCEPTION 'ledger transaction % does not balance', NEW.txn_key
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER ledger_balanced AFTER INSERT ON ledger_entry
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_balanced();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['plan_volume_discount', 'price', 'price_tier'] LOOP
        EXECUTE format('CREATE TRIGGER price_guard BEFORE INSERT ON %I
            FOR EACH ROW EXECUTE FUNCTION price_guard()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['plan', 'plan_volume_discount', 'price', 'price_tier',
        'invoice_line', 'ledger_txn', 'ledger_entry'] LOOP
        EXECUTE format('CREATE TRIGGER no_update BEFORE UPDATE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['plan', 'plan_version', 'plan_volume_discount', 'price',
        'price_tier', 'billing_period', 'invoice_counter', 'invoice', 'invoice_line',
        'ledger_txn', 'ledger_entry'] LOOP
        EXECUTE format('CREATE TRIGGER no_delete BEFORE DELETE ON %I
            FOR EACH ROW EXECUTE FUNCTION forbid_change()', name);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I
            FOR EACH STATEMENT EXECUTE FUNCTION forbid_change()', name);
    END LOOP;
END $$;
