-- What a plan costs: effective-dated versions that never change once they are published.

CREATE TABLE meter (
    meter text PRIMARY KEY,
    unit text NOT NULL,
    source text NOT NULL CHECK (source IN ('interval', 'event', 'both'))
);

INSERT INTO meter VALUES
    ('bot_seconds', 'seconds that bots ran', 'interval'),
    ('cpu_core_seconds', 'requested cores times seconds', 'interval'),
    ('memory_gib_seconds', 'requested GiB times seconds', 'interval'),
    ('storage_gb_hours', 'GB times hours', 'both'),
    ('rpc_calls', 'calls', 'event'),
    ('bandwidth_gb', 'GB transferred', 'event'),
    ('ai_units', 'processing units', 'event'),
    ('premium_features', 'uses', 'event'),
    ('trades', 'closed trades', 'event');

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
    commission_netting text NOT NULL DEFAULT 'none'
        CHECK (commission_netting IN ('none', 'period', 'hwm')),
    tier_scope text NOT NULL DEFAULT 'period' CHECK (tier_scope IN ('period', 'phase')),
    rounding text NOT NULL DEFAULT 'half_even' CHECK (rounding IN ('half_even', 'half_up')),
    content_hash bytea NOT NULL,
    published_at timestamptz NOT NULL,
    published_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (plan, version),
    CHECK (NOT isempty(effective)),
    CHECK (lower(effective) = date_trunc('second', lower(effective))),
    CHECK (commission_netting = 'none' OR commission_cap_per_trade_minor IS NULL),
    EXCLUDE USING gist (plan WITH =, effective WITH &&)
);
COMMENT ON TABLE plan_version IS 'Effective-dated prices of a plan; a change is a new version.';
COMMENT ON COLUMN plan_version.tier_scope IS
    'period: counted on over revisions of the plan; phase: each revision counts anew, by its seconds.';
COMMENT ON COLUMN plan_version.rounding IS
    'Of each line to the minor unit; half_up rounds halves away from zero.';
COMMENT ON COLUMN plan_version.commission_netting IS
    'none: of each trade that won; period: of wins less losses; hwm: of what exceeds the '
    'high-water mark.';

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
    on_exceed text NOT NULL DEFAULT 'bill' CHECK (on_exceed IN ('bill', 'block')),
    PRIMARY KEY (plan, version, meter),
    FOREIGN KEY (plan, version) REFERENCES plan_version,
    CHECK (on_exceed = 'bill' OR included > 0)
);
COMMENT ON COLUMN price.included IS 'Per period, in the unit of the meter.';
COMMENT ON COLUMN price.unit_size IS 'How much of the meter unit_price buys: 3600 is by the hour.';
COMMENT ON COLUMN price.on_exceed IS 'bill: what is used beyond `included` is charged; block: not used.';

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

CREATE FUNCTION price_guard() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path FROM CURRENT AS $$
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
CREATE TRIGGER price_guard BEFORE INSERT ON plan_volume_discount
    FOR EACH ROW EXECUTE FUNCTION price_guard();
CREATE TRIGGER price_guard BEFORE INSERT ON price
    FOR EACH ROW EXECUTE FUNCTION price_guard();
CREATE TRIGGER price_guard BEFORE INSERT ON price_tier
    FOR EACH ROW EXECUTE FUNCTION price_guard();

SELECT freeze_rows(ARRAY['plan', 'plan_volume_discount', 'price', 'price_tier']);
SELECT keep_rows(ARRAY['plan_version']);
