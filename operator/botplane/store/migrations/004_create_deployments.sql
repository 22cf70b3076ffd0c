-- What ran: bots and their pods. Rows stay when the objects are gone; bills refer to them.

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
    PRIMARY KEY (tenant_id, pod_uid)
);
COMMENT ON COLUMN pod.settled_at IS 'When the last second of the pod was known to be here.';
CREATE INDEX pod_unsettled ON pod (tenant_id, bot_id) WHERE settled_at IS NULL;
