-- What was used: intervals of containers and volumes, and usage events. Rows stay when the objects
-- are gone; bills refer to them.

CREATE TABLE bot (
    tenant_id uuid NOT NULL,
    bot_id uuid NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (tenant_id, bot_id)
);
COMMENT ON COLUMN bot.bot_id IS 'Uid of the BotDeployment: a re-created one is another.';

CREATE TABLE pod (
    tenant_id uuid NOT NULL,
    pod_uid uuid NOT NULL,
    bot_id uuid NOT NULL,
    namespace text NOT NULL,
    name text NOT NULL,
    node text,
    created_at timestamptz NOT NULL,
    deletion_at timestamptz,
    settled_at timestamptz,
    forced_at timestamptz,
    kind text NOT NULL DEFAULT 'Pod' CHECK (kind IN ('Pod', 'PersistentVolumeClaim')),
    PRIMARY KEY (tenant_id, pod_uid)
);
COMMENT ON COLUMN pod.settled_at IS 'When the last second of the pod was known to be here.';
COMMENT ON TABLE pod IS 'What is metered: pods, and claims of volumes.';
COMMENT ON COLUMN pod.forced_at IS 'When it was settled by force, by an annotation of a person.';
CREATE INDEX pod_unsettled ON pod (tenant_id, bot_id) WHERE settled_at IS NULL;

CREATE TABLE source_watermark (
    source text PRIMARY KEY,
    complete_until timestamptz NOT NULL,
    beat_at timestamptz NOT NULL
);
COMMENT ON TABLE source_watermark IS
    'Everything before complete_until is here. A period is billed when every source has passed it.';

-- A claim is metered as a pod whose only run is that of its volume: from when it was bound until it
-- was asked to go, cut where its capacity changed.
CREATE TABLE runtime_interval (
    tenant_id uuid NOT NULL,
    pod_uid uuid NOT NULL,
    container text NOT NULL,
    restart integer NOT NULL CHECK (restart >= 0),
    seg integer NOT NULL DEFAULT 0 CHECK (seg >= 0),
    bot_id uuid NOT NULL,
    node text,
    started_at timestamptz(0) NOT NULL,
    ended_at timestamptz(0),
    last_seen_at timestamptz NOT NULL,
    cpu_milli integer NOT NULL CHECK (cpu_milli >= 0),
    mem_bytes bigint NOT NULL CHECK (mem_bytes >= 0),
    close_reason text CHECK (close_reason IN ('terminated', 'restarted', 'resized', 'pod_gone',
        'node_lost', 'reconciled')),
    close_quality text CHECK (close_quality IN ('exact', 'bounded', 'estimated')),
    storage_bytes bigint NOT NULL DEFAULT 0 CHECK (storage_bytes >= 0),
    PRIMARY KEY (tenant_id, pod_uid, container, restart, seg),
    CHECK (ended_at >= started_at),
    CHECK ((ended_at IS NULL) = (close_reason IS NULL)),
    CHECK ((ended_at IS NULL) = (close_quality IS NULL)),
    EXCLUDE USING gist (tenant_id WITH =, pod_uid WITH =, container WITH =,
        tstzrange(started_at, ended_at) WITH &&)
);
COMMENT ON TABLE runtime_interval IS
    'One run of one container, or a bound volume at one size; in whole seconds; open: no end.';
COMMENT ON COLUMN runtime_interval.seg IS 'Counts up when resources change within one run.';
COMMENT ON COLUMN runtime_interval.cpu_milli IS 'Requested, in thousandths of a core.';
COMMENT ON COLUMN runtime_interval.pod_uid IS 'Uid of the pod, or of the claim of a volume.';
COMMENT ON COLUMN runtime_interval.storage_bytes IS 'Capacity of a volume; 0 for a container.';
CREATE INDEX runtime_interval_open ON runtime_interval (last_seen_at) WHERE ended_at IS NULL;
CREATE INDEX runtime_interval_during ON runtime_interval
    USING gist (tenant_id, tstzrange(started_at, ended_at));
CREATE INDEX runtime_interval_ended ON runtime_interval USING brin (ended_at);

CREATE TABLE meter_gap (
    tenant_id uuid NOT NULL,
    pod_uid uuid NOT NULL,
    container text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    reason text NOT NULL,
    PRIMARY KEY (tenant_id, pod_uid, container, starts_at),
    CHECK (ends_at >= starts_at)
);
COMMENT ON TABLE meter_gap IS 'Time that may have been used and is not billed: the upper bound.';

CREATE TABLE usage_event (
    tenant_id uuid NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    meter text NOT NULL,
    bot_id uuid,
    occurred_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    quantity quantity NOT NULL,
    dims jsonb NOT NULL DEFAULT '{}'
) PARTITION BY RANGE (occurred_at);
CREATE INDEX usage_event_occurred ON usage_event (tenant_id, meter, occurred_at);

-- A unique key cannot span the months of usage_event: this table is the truth of «seen before».
CREATE TABLE usage_event_key (
    tenant_id uuid NOT NULL,
    source text NOT NULL,
    event_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    body_hash bytea NOT NULL,
    PRIMARY KEY (tenant_id, source, event_id)
) PARTITION BY HASH (tenant_id);
CREATE INDEX usage_event_key_occurred ON usage_event_key USING brin (occurred_at);

CREATE TABLE usage_hourly (
    tenant_id uuid NOT NULL,
    meter text NOT NULL,
    hour timestamptz(0) NOT NULL,
    bot_id uuid NOT NULL,
    dims jsonb NOT NULL DEFAULT '{}',
    quantity quantity NOT NULL,
    events bigint NOT NULL CHECK (events > 0),
    PRIMARY KEY (tenant_id, meter, hour, bot_id, dims),
    CHECK (hour = date_bin('1 hour', hour, '2000-01-01 00:00+00'))
) PARTITION BY RANGE (hour);
COMMENT ON TABLE usage_hourly IS
    'Sums of usage_event by UTC hour, written with it; bot_id of all zeros: no bot.';

CREATE TABLE usage_event_default PARTITION OF usage_event DEFAULT;
CREATE TABLE usage_hourly_default PARTITION OF usage_hourly DEFAULT;

-- Make the month partitions that touch [from_day, to_day); rows that came too early move along.
-- Existence is read from pg_class: to_regclass() may remember from before the lock that there is
-- none.
CREATE FUNCTION ensure_partitions(from_day date, to_day date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    made integer := 0;
    month timestamp := date_trunc('month', from_day);
    parent record;
    child text;
    bounds text[];
BEGIN
    WHILE month < to_day LOOP
        bounds := ARRAY[month::text || '+00', (month + interval '1 month')::text || '+00'];
        FOR parent IN SELECT * FROM (VALUES ('usage_event', 'occurred_at'),
            ('usage_hourly', 'hour')) AS p (name, key)
        LOOP
            child := parent.name || '_' || to_char(month, 'YYYYMM');
            CONTINUE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relname = child);
            PERFORM pg_advisory_xact_lock(hashtextextended('ensure_partitions', 0));
            CONTINUE WHEN EXISTS (SELECT FROM pg_class c WHERE c.relname = child);
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', child, parent.name);
            EXECUTE format('WITH early AS (DELETE FROM %I WHERE %I >= %L AND %I < %L RETURNING *)
                INSERT INTO %I SELECT * FROM early', parent.name || '_default',
                parent.key, bounds[1], parent.key, bounds[2], child);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                parent.name, child, bounds[1], bounds[2]);
            made := made + 1;
        END LOOP;
        month := month + interval '1 month';
    END LOOP;
    RETURN made;
END $$;

DO $$
BEGIN
    FOR i IN 0..7 LOOP
        EXECUTE format('CREATE TABLE usage_event_key_%s PARTITION OF usage_event_key
            FOR VALUES WITH (MODULUS 8, REMAINDER %s)', i, i);
    END LOOP;
    PERFORM ensure_partitions((now() - interval '1 month')::date,
        (now() + interval '3 months')::date);
END $$;

-- Rows that lie outside of all months: the web process looks after them and reads no partition.
CREATE FUNCTION early_rows() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
SET search_path FROM CURRENT AS $$
    SELECT (SELECT count(*) FROM usage_event_default) + (SELECT count(*) FROM usage_hourly_default)
$$;
