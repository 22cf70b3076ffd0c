-- What tenants were told of their limits, and who is stopped at one.

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
    blocked_at timestamptz NOT NULL,
    period text NOT NULL,
    used numeric NOT NULL,
    limit_value numeric NOT NULL,
    cleared_at timestamptz,
    PRIMARY KEY (tenant_id, blocked_at),
    CHECK (cleared_at >= blocked_at)
);
COMMENT ON TABLE spend_block IS 'From reaching the spend limit to having room again.';
CREATE UNIQUE INDEX spend_block_open ON spend_block (tenant_id) WHERE cleared_at IS NULL;
