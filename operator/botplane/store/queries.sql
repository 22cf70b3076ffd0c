-- newest_epoch --
SELECT epoch FROM leadership

-- take_epoch --
-- Of several that saw the same leader one succeeds: to the others the row is no longer what they saw.
INSERT INTO leadership (epoch, holder, since) VALUES (%(epoch)s, %(holder)s, %(now)s)
ON CONFLICT (one) DO UPDATE SET epoch = EXCLUDED.epoch, holder = EXCLUDED.holder,
    since = EXCLUDED.since
WHERE leadership.epoch = %(seen)s
