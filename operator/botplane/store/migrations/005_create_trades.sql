-- Trades, and the commission on those that won.

CREATE TABLE trade_commission (
    tenant_id uuid NOT NULL,
    trade_id text NOT NULL CHECK (trade_id <> ''),
    bot_id uuid,
    closed_at timestamptz NOT NULL,
    pnl numeric(38, 18) NOT NULL,
    volume numeric(38, 18) NOT NULL CHECK (volume >= 0),
    currency char(3) NOT NULL,
    fx_rate numeric(38, 18) CHECK (fx_rate > 0),
    fx_source text,
    fx_at timestamptz,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, trade_id),
    CHECK (fx_rate IS NOT NULL OR (fx_source IS NULL AND fx_at IS NULL))
);
COMMENT ON TABLE trade_commission IS 'Closed trades; commission is final when a period is billed.';
COMMENT ON COLUMN trade_commission.pnl IS 'Profit, or loss below zero, in the major unit of currency.';
COMMENT ON COLUMN trade_commission.fx_rate IS
    'What one unit of currency is in that of the tenant; null holds the trade back.';
CREATE INDEX trade_commission_closed ON trade_commission (tenant_id, closed_at);

-- A trade is history; only the rate of one that is held back may get known.
CREATE FUNCTION trade_commission_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.fx_rate IS NOT NULL OR to_jsonb(NEW) - '{fx_rate,fx_source,fx_at}'::text[]
        IS DISTINCT FROM to_jsonb(OLD) - '{fx_rate,fx_source,fx_at}'::text[]
    THEN
        RAISE EXCEPTION 'trade % of tenant % is history', OLD.trade_id, OLD.tenant_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER trade_commission_guard BEFORE UPDATE ON trade_commission
    FOR EACH ROW EXECUTE FUNCTION trade_commission_guard();
CREATE TRIGGER no_delete BEFORE DELETE ON trade_commission
    FOR EACH ROW EXECUTE FUNCTION forbid_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON trade_commission
    FOR EACH STATEMENT EXECUTE FUNCTION forbid_change();

ALTER TABLE invoice_line DROP CONSTRAINT invoice_line_kind_check;
ALTER TABLE invoice_line ADD CONSTRAINT invoice_line_kind_check
    CHECK (kind IN ('subscription', 'usage', 'commission', 'commitment', 'correction'));
ALTER TABLE invoice_line DROP CONSTRAINT invoice_line_check;
ALTER TABLE invoice_line ADD CONSTRAINT invoice_line_meter_check
    CHECK (CASE kind WHEN 'usage' THEN meter IS NOT NULL WHEN 'correction' THEN true
        ELSE meter IS NULL END);
ALTER TABLE ledger_entry DROP CONSTRAINT ledger_entry_account_check;
ALTER TABLE ledger_entry ADD CONSTRAINT ledger_entry_account_check CHECK (account IN (
    'receivable', 'carried', 'cash', 'customer_credit', 'tax_payable', 'revenue_subscription',
    'revenue_usage', 'revenue_commission', 'discount_given', 'credit_given', 'bad_debt',
    'processor_fee'));

-- Commission on the winning trades of each cut: profit * rate * (1 - discount), capped per trade,
-- then per period (by the seconds of the cut). The discount is that of the volume traded in the
-- whole period, so the order in which trades arrive does not matter.
CREATE FUNCTION charge_commission(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    WITH traded AS (
        SELECT p.tenant_id, p.period, t.closed_at, t.pnl * t.fx_rate AS pnl,
            sum(t.volume * t.fx_rate) OVER (PARTITION BY p.tenant_id, p.period) AS volume
        FROM unnest(tenants, periods) AS asked (tenant_id, period)
        JOIN billing_period p ON p.tenant_id = asked.tenant_id AND p.period = asked.period
        JOIN trade_commission t ON t.tenant_id = p.tenant_id AND t.closed_at >= p.starts_at
            AND t.closed_at < least(p.ends_at, until)
        WHERE t.fx_rate IS NOT NULL
    ),
    won AS (
        SELECT c.tenant_id, c.period, c.plan, c.version, c.starts_at, c.ends_at, c.seconds,
            c.period_seconds, m.minors, v.commission_rate AS rate,
            v.commission_cap_per_trade_minor AS cap_per_trade,
            v.commission_cap_per_period_minor AS cap_per_period,
            t.pnl, t.volume, COALESCE(d.discount, 0) AS discount
        FROM traded t
        JOIN cut(tenants, periods) c ON c.tenant_id = t.tenant_id AND c.period = t.period
            AND t.closed_at >= c.starts_at AND t.closed_at < c.ends_at
        JOIN plan_version v ON v.plan = c.plan AND v.version = c.version
        JOIN plan p ON p.plan = c.plan
        JOIN currency u ON u.currency = p.currency
        CROSS JOIN LATERAL (SELECT power(10::numeric, u.minor_units) AS minors) AS m
        LEFT JOIN LATERAL (SELECT d.discount FROM plan_volume_discount d
            WHERE d.plan = c.plan AND d.version = c.version
                AND d.from_volume_minor <= t.volume * m.minors
            ORDER BY d.from_volume_minor DESC LIMIT 1) AS d ON true
        WHERE t.pnl > 0 AND v.commission_rate > 0
    ),
    line AS (
        SELECT w.tenant_id, w.period, w.plan, w.version, w.starts_at, w.ends_at, w.minors, w.rate,
            w.discount, w.volume, w.cap_per_trade, w.cap_per_period, count(*) AS trades,
            sum(w.pnl) AS profit,
            divide(least(
                sum(least(w.pnl * w.rate * (1 - w.discount) * w.minors, w.cap_per_trade))
                    * w.period_seconds,
                w.cap_per_period * w.seconds), w.minors * w.period_seconds) AS exact
        FROM won w
        GROUP BY w.tenant_id, w.period, w.plan, w.version, w.starts_at, w.ends_at, w.seconds,
            w.period_seconds, w.minors, w.rate, w.discount, w.volume, w.cap_per_trade,
            w.cap_per_period
    )
    SELECT l.tenant_id, l.period, 'commission/' || to_char(
            l.starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'commission', NULL, l.starts_at, l.ends_at, l.trades, l.exact,
        half_even(l.exact * l.minors)::bigint,
        jsonb_build_object('plan', l.plan, 'version', l.version,
            'profit', trim_scale(l.profit)::text, 'volume', trim_scale(l.volume)::text,
            'rate', trim_scale(l.rate)::text, 'discount', trim_scale(l.discount)::text,
            'capPerTradeMinor', l.cap_per_trade, 'capPerPeriodMinor', l.cap_per_period)
    FROM line l
$$;

ALTER FUNCTION charge(uuid[], text[], timestamptz) RENAME TO charge_plan;
-- All lines of an invoice: fee, usage, commitment and commission.
CREATE FUNCTION charge(tenants uuid[], periods text[], until timestamptz)
RETURNS TABLE (tenant_id uuid, period text, line_key text, kind text, meter text,
    starts_at timestamptz, ends_at timestamptz, quantity numeric, exact numeric,
    amount_minor bigint, detail jsonb)
LANGUAGE sql STABLE AS $$
    SELECT * FROM charge_plan(tenants, periods, until)
    UNION ALL
    SELECT * FROM charge_commission(tenants, periods, until)
$$;
