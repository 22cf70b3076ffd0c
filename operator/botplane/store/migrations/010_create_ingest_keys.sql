-- Who may report usage, and the meter of closed trades.

CREATE TABLE ingest_key (
    tenant_id uuid NOT NULL,
    key_id text NOT NULL CHECK (key_id ~ '^[A-Za-z0-9-]{1,64}$'),
    bot_id uuid,
    secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
    scopes text[] NOT NULL CHECK (scopes <@ ARRAY['usage:write', 'usage:read']),
    issued_at timestamptz NOT NULL,
    revoked_at timestamptz,
    PRIMARY KEY (tenant_id, key_id)
);
COMMENT ON TABLE ingest_key IS 'Bearers of usage events: tenant and bot come from the key.';
COMMENT ON COLUMN ingest_key.secret_hash IS 'SHA-256; the secret itself is stored nowhere.';
COMMENT ON COLUMN ingest_key.bot_id IS 'Null: the key is the tenant''s own.';
CREATE INDEX ingest_key_id ON ingest_key (key_id);

INSERT INTO meter VALUES ('trades', 'closed trades', 'event') ON CONFLICT DO NOTHING;
