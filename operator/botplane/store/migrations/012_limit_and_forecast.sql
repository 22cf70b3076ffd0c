-- What tenants were told of their limits, who is stopped at one, and what was foreseen.

CREATE TABLE limit_notice (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    scope text NOT NULL,
    percent integer NOT NULL CHECK (percent IN (50, 80, 90, 100)),
    used numeric NOT NULL,
    limit_value numeric NOT NULL,
    noticed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, period, scope, percent)
);
COMMENT ON TABLE limit_notice IS 'Each warning once per period.';
COMMENT ON COLUMN limit_notice.scope IS 'spend, or included/<meter>.';

CREATE TABLE spend_block (
    tenant_id uuid NOT NULL,
    scope text NOT NULL DEFAULT 'spend',
    blocked_at timestamptz NOT NULL,
    period text NOT NULL,
    used numeric NOT NULL,
    limit_value numeric NOT NULL,
    cleared_at timestamptz,
    PRIMARY KEY (tenant_id, scope, blocked_at),
    CHECK (cleared_at >= blocked_at)
);
COMMENT ON TABLE spend_block IS 'From reaching a hard limit to having room again.';
COMMENT ON COLUMN spend_block.scope IS 'spend, or included/<meter> whose price says block.';
CREATE UNIQUE INDEX spend_block_open ON spend_block (tenant_id, scope) WHERE cleared_at IS NULL;

CREATE TABLE forecast (
    tenant_id uuid NOT NULL,
    period text NOT NULL,
    percent integer NOT NULL CHECK (percent IN (10, 25, 50, 75)),
    made_at timestamptz NOT NULL,
    amount_minor minor NOT NULL,
    low_minor minor NOT NULL,
    high_minor minor NOT NULL,
    run_rate_minor minor NOT NULL,
    actual_minor minor,
    PRIMARY KEY (tenant_id, period, percent),
    FOREIGN KEY (tenant_id, period) REFERENCES billing_period,
    CHECK (low_minor <= amount_minor AND amount_minor <= high_minor)
);
COMMENT ON TABLE forecast IS 'One row when a period is 10, 25, 50 and 75 percent over.';
COMMENT ON COLUMN forecast.run_rate_minor IS 'The same with usage as on average until then.';
COMMENT ON COLUMN forecast.actual_minor IS 'Charges of the invoice, without corrections of others.';
CREATE INDEX forecast_open ON forecast (tenant_id, period) WHERE actual_minor IS NULL;
