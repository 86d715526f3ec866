-- +goose Up

-- Who comes back with another key is found by what it has proved, and what a person said of a blocked or rejected device holds for it. The first 64
-- characters are enough to find an identity by. Registrations without a proof of who they are write to none of these.
CREATE INDEX devices_by_identity ON devices (substr(proved, 1, 64), approval_level, created) WHERE proved <> '' AND obsolete_by = '';
CREATE INDEX devices_replaced ON devices (substr(proved, 1, 64), obsolete_at) WHERE proved <> '' AND obsolete_by <> '';
CREATE INDEX devices_blocked_identity ON devices (substr(proved, 1, 64)) WHERE proved <> '' AND blocked;
CREATE INDEX devices_rejected ON devices (hardware_id1, client_id)
    WHERE approval_level <= 1 AND approval_by <> '' AND approval_by <> 'site' AND obsolete_by = '';
CREATE INDEX devices_rejected_identity ON devices (substr(proved, 1, 64))
    WHERE proved <> '' AND approval_level <= 1 AND approval_by <> '' AND approval_by <> 'site' AND obsolete_by = '';
