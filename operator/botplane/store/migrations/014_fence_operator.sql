-- Only the operator that leads may write. Each process draws an epoch, says it on every connection
-- (botplane.epoch), and puts it here once it has proven that it holds the Lease (store/epoch.py).
-- One that was paused while another took over is refused here, in the transaction of its write,
-- whatever it writes. Who says no epoch is no operator.

CREATE TABLE leadership (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch uuid NOT NULL,
    holder text NOT NULL,
    since timestamptz NOT NULL
);
COMMENT ON TABLE leadership IS 'Which operator may write: the last one that took over.';

CREATE FUNCTION refuse_old_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    leader leadership;
BEGIN
    -- The lock holds until the end: nobody takes over between this look and the COMMIT.
    SELECT * INTO leader FROM leadership FOR SHARE;
    IF leader.epoch IS DISTINCT FROM current_setting('botplane.epoch')::uuid THEN
        RAISE EXCEPTION 'another operator leads: %, since %',
            COALESCE(leader.holder, 'nobody'), leader.since USING ERRCODE = 'BP001';
    END IF;
    RETURN NULL;
END $$;

-- Fence tables. A migration that lets the operator write another one calls this for it.
-- After each row, not before each statement: what changes nothing must not write a lock either.
CREATE FUNCTION fence_operator(tables text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY tables LOOP
        EXECUTE format('CREATE TRIGGER fence AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW
            WHEN (current_setting(''botplane.epoch'', true) <> '''')
            EXECUTE FUNCTION refuse_old_epoch()', name);
    END LOOP;
END $$;

SELECT fence_operator(ARRAY['tenant', 'tenant_profile', 'plan', 'plan_version',
    'plan_volume_discount', 'price', 'price_tier', 'subscription_phase', 'bot', 'ingest_key',
    'spend_block', 'limit_notice', 'dunning_notice', 'forecast', 'audit_log']);
