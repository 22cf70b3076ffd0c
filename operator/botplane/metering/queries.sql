-- commit_durably --
-- A finalizer is removed only after the commit is on disk, and on that of a synchronous standby,
-- whatever the database's default says.
SELECT set_config('synchronous_commit', 'on', true)
WHERE current_setting('synchronous_commit') <> 'remote_apply';

-- add_bots --
-- Bots are known by the pods they run; a known bot is left as it is.
INSERT INTO bot (tenant_id, bot_id, name, created_at)
SELECT b.tenant_id, b.bot_id, b.name, b.created_at
FROM jsonb_to_recordset(%(bots)s) AS b (tenant_id uuid, bot_id uuid, name text,
    created_at timestamptz)
ORDER BY b.tenant_id, b.bot_id
ON CONFLICT (tenant_id, bot_id) DO NOTHING;

-- lock_pods --
-- Insert or update pods and hold their rows: settling one pod never runs twice at once.
INSERT INTO pod AS p (tenant_id, pod_uid, kind, bot_id, namespace, name, node, created_at,
    deletion_at)
SELECT n.tenant_id, n.pod_uid, n.kind, n.bot_id, n.namespace, n.name, n.node, n.created_at,
    n.deletion_at
FROM jsonb_to_recordset(%(pods)s) AS n (tenant_id uuid, pod_uid uuid, kind text, bot_id uuid,
    namespace text, name text, node text, created_at timestamptz, deletion_at timestamptz)
ORDER BY n.tenant_id, n.pod_uid
ON CONFLICT (tenant_id, pod_uid) DO UPDATE
SET node = COALESCE(EXCLUDED.node, p.node),
    deletion_at = COALESCE(EXCLUDED.deletion_at, p.deletion_at)
WHERE (p.node, p.deletion_at) IS DISTINCT FROM
    (COALESCE(EXCLUDED.node, p.node), COALESCE(EXCLUDED.deletion_at, p.deletion_at));

-- newest_intervals --
-- The newest intervals of each container: an open one is always the newest.
SELECT i.pod_uid, i.container, i.restart, i.seg, i.started_at, i.ended_at, i.last_seen_at,
    i.cpu_milli, i.mem_bytes, i.storage_bytes, i.close_reason, i.close_quality
FROM jsonb_to_recordset(%(containers)s) AS c (tenant_id uuid, pod_uid uuid, container text)
CROSS JOIN LATERAL (
    SELECT r.* FROM runtime_interval r
    WHERE r.tenant_id = c.tenant_id AND r.pod_uid = c.pod_uid AND r.container = c.container
    ORDER BY r.restart DESC, r.seg DESC
    LIMIT 6
) AS i;

-- write_intervals --
-- Better evidence replaces worse; an exact end never moves and a closed interval never opens.
INSERT INTO runtime_interval AS i (tenant_id, pod_uid, container, restart, seg, bot_id, node,
    started_at, ended_at, last_seen_at, cpu_milli, mem_bytes, storage_bytes, close_reason,
    close_quality)
SELECT n.tenant_id, n.pod_uid, n.container, n.restart, n.seg, n.bot_id, n.node, n.started_at,
    n.ended_at, n.last_seen_at, n.cpu_milli, n.mem_bytes, n.storage_bytes, n.close_reason,
    n.close_quality
FROM jsonb_to_recordset(%(intervals)s) AS n (tenant_id uuid, pod_uid uuid, container text,
    restart integer, seg integer, bot_id uuid, node text, started_at timestamptz,
    ended_at timestamptz, last_seen_at timestamptz, cpu_milli bigint, mem_bytes bigint,
    storage_bytes bigint, close_reason text, close_quality text)
ORDER BY n.tenant_id, n.pod_uid, n.container, n.restart, n.seg
ON CONFLICT (tenant_id, pod_uid, container, restart, seg) DO UPDATE
SET ended_at = EXCLUDED.ended_at, close_reason = EXCLUDED.close_reason,
    close_quality = EXCLUDED.close_quality
WHERE EXCLUDED.ended_at IS NOT NULL
    AND COALESCE(array_position(ARRAY['estimated', 'bounded', 'exact'], i.close_quality), 0)
        < array_position(ARRAY['estimated', 'bounded', 'exact'], EXCLUDED.close_quality);

-- write_gaps --
-- Runs nobody saw: not billed, but on record with the most they can have been.
INSERT INTO meter_gap (tenant_id, pod_uid, container, starts_at, ends_at, reason)
SELECT g.tenant_id, g.pod_uid, g.container, g.starts_at, g.ends_at, g.reason
FROM jsonb_to_recordset(%(gaps)s) AS g (tenant_id uuid, pod_uid uuid, container text,
    starts_at timestamptz, ends_at timestamptz, reason text)
ON CONFLICT DO NOTHING;

-- note_forced --
-- Pods that a person has settled by force, each once.
WITH forced AS (
    UPDATE pod AS p SET forced_at = %(now)s
    FROM jsonb_to_recordset(%(pods)s) AS s (tenant_id uuid, pod_uid uuid)
    WHERE p.tenant_id = s.tenant_id AND p.pod_uid = s.pod_uid AND p.forced_at IS NULL
    RETURNING p.tenant_id, p.pod_uid, p.namespace, p.name
)
SELECT audit_append('tenant/' || o.tenant_id, 'metering', 'pod.force_settle',
    o.namespace || '/' || o.name, jsonb_build_object('podUid', o.pod_uid), %(now)s)
FROM (SELECT * FROM forced ORDER BY tenant_id, pod_uid) AS o;

-- mark_settled --
-- These pods have told their last second.
UPDATE pod AS p SET settled_at = %(now)s
FROM jsonb_to_recordset(%(pods)s) AS s (tenant_id uuid, pod_uid uuid)
WHERE p.tenant_id = s.tenant_id AND p.pod_uid = s.pod_uid AND p.settled_at IS NULL;

-- close_vanished --
-- Pods that vanished unseen: bill until they were last known to run.
WITH closed AS (
    UPDATE runtime_interval AS i
    SET ended_at = greatest(i.started_at, date_trunc('second', i.last_seen_at)),
        close_reason = 'pod_gone', close_quality = 'bounded'
    FROM jsonb_to_recordset(%(pods)s) AS s (tenant_id uuid, pod_uid uuid)
    WHERE i.tenant_id = s.tenant_id AND i.pod_uid = s.pod_uid AND i.ended_at IS NULL
    RETURNING 1
)
SELECT count(*) FROM closed;

-- unsettled_pods --
-- Pods that have not been released as far as this database knows, and those that were, of which a
-- slower metering has opened a run since.
SELECT kind, tenant_id, pod_uid, namespace, name FROM pod WHERE settled_at IS NULL
UNION ALL
SELECT p.kind, p.tenant_id, p.pod_uid, p.namespace, p.name FROM pod p
WHERE p.settled_at IS NOT NULL AND (p.tenant_id, p.pod_uid) IN (
    SELECT i.tenant_id, i.pod_uid FROM runtime_interval i WHERE i.ended_at IS NULL);

-- see_running --
-- Note that runs were still going on: the bound of what a lost end can cost.
UPDATE runtime_interval AS i SET last_seen_at = s.seen_at
FROM jsonb_to_recordset(%(runs)s) AS s (tenant_id uuid, pod_uid uuid, container text,
    restart integer, seen_at timestamptz)
WHERE i.tenant_id = s.tenant_id AND i.pod_uid = s.pod_uid AND i.container = s.container
    AND i.restart = s.restart AND i.ended_at IS NULL AND i.last_seen_at < s.seen_at;

-- advance_watermark --
-- Say until when all running time is here; the mark never goes back.
INSERT INTO source_watermark AS w (source, complete_until, beat_at)
VALUES ('metering', %(complete_until)s, %(now)s)
ON CONFLICT (source) DO UPDATE
SET complete_until = greatest(w.complete_until, EXCLUDED.complete_until),
    beat_at = greatest(w.beat_at, EXCLUDED.beat_at);
