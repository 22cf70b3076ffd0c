-- Trades, and the commission on what they win.

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

CREATE TABLE commission_mark (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    cumulative numeric NOT NULL,
    mark numeric NOT NULL CHECK (mark >= 0 AND mark >= cumulative),
    PRIMARY KEY (tenant_id, period),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period
);
COMMENT ON TABLE commission_mark IS
    'Where tenants with a high-water mark stood at the end of each billed period, in the major unit.';
COMMENT ON COLUMN commission_mark.cumulative IS 'Won less lost since the tenant''s first trade.';
COMMENT ON COLUMN commission_mark.mark IS
    'The highest of it at the end of any stay on a plan so far; 0 at first.';

SELECT keep_rows(ARRAY['trade_commission']);
