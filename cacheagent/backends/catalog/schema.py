"""The tables, as the scripts that lead from one version of the schema to the next.

A script that was released is never changed: a new one is added at the end. The number of scripts
that were run is SQLite's ``user_version``.
"""

from __future__ import annotations

MIGRATIONS = (
    """
    CREATE TABLE bases (
        base_id TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('ready', 'evicting', 'quarantined')),
        format TEXT NOT NULL,
        source_format TEXT NOT NULL,
        size INTEGER NOT NULL,
        virtual_size INTEGER NOT NULL,
        allocated INTEGER NOT NULL,
        inspection_version INTEGER NOT NULL,
        fetched_at TEXT NOT NULL,
        last_used_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- An image without a base is the intent to download it.
    CREATE TABLE images (
        image_id TEXT PRIMARY KEY,
        base_id TEXT REFERENCES bases (base_id) ON DELETE CASCADE,
        description TEXT NOT NULL,
        requested_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX images_by_base ON images (base_id);

    -- A disk keeps the name of its base, without a foreign key: an overlay whose base was lost is
    -- its user again when the base comes back.
    CREATE TABLE disks (
        instance_id TEXT NOT NULL,
        name TEXT NOT NULL,
        spec TEXT,
        state TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
        format TEXT NOT NULL,
        mode TEXT NOT NULL,
        virtual_size INTEGER NOT NULL,
        image_id TEXT,
        base_id TEXT,
        cache TEXT NOT NULL,
        created_at TEXT NOT NULL,
        error TEXT,
        PRIMARY KEY (instance_id, name)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX disks_by_base ON disks (base_id);

    -- The disks that need their base to be there.
    CREATE VIEW base_users AS SELECT * FROM disks
        WHERE base_id IS NOT NULL
        AND (state = 'pending' OR (state = 'ready' AND mode = 'overlay'));

    -- A pin stands for itself: it may come before the image and outlive it.
    CREATE TABLE pins (
        image_id TEXT PRIMARY KEY,
        pinned_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    """
    ALTER TABLE bases ADD COLUMN file_digest TEXT;
    ALTER TABLE bases ADD COLUMN verified_at TEXT;

    -- What Glance said of the image when it was last asked.
    ALTER TABLE images ADD COLUMN standing TEXT NOT NULL DEFAULT 'active'
        CHECK (standing IN ('active', 'deactivated', 'gone', 'changed'));

    -- A hold on a base by somebody who works with it; the next start drops what a crash left.
    CREATE TABLE leases (
        lease_id TEXT PRIMARY KEY,
        base_id TEXT NOT NULL,
        holder TEXT NOT NULL,
        expires_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX leases_by_base ON leases (base_id);

    -- What is to be remembered of the host, by name.
    CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    """,
    """
    -- The signatures that were checked and hold for the content of the base, as JSON.
    ALTER TABLE bases ADD COLUMN signatures TEXT NOT NULL DEFAULT '[]';
    """,
)
