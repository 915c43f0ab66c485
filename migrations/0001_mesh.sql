-- One database is one mesh. See ARCHITECTURE.md for the words.

CREATE TABLE mesh (
    -- There is exactly one row.
    only_row         boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    id               uuid        NOT NULL,
    tunnel_prefix    inet        NOT NULL CHECK (family(tunnel_prefix) = 4 AND tunnel_prefix = network(tunnel_prefix)),
    listen_port      integer     NOT NULL CHECK (listen_port BETWEEN 1 AND 65535),
    -- 0 means none.
    keepalive_s      integer     NOT NULL CHECK (keepalive_s BETWEEN 0 AND 65535),
    -- Goes up when the database is restored from a backup.
    epoch            bigint      NOT NULL CHECK (epoch > 0),
    -- Each change of configuration takes the next one, last in its transaction, so that revisions are in the order of the commits.
    revision         bigint      NOT NULL CHECK (revision >= 0),
    -- Ephemeral keys of enrolment are derived from it.
    challenge_secret bytea       NOT NULL CHECK (octet_length(challenge_secret) = 32),
    created_at       timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sites (
    id               uuid        PRIMARY KEY,
    name             text        NOT NULL CONSTRAINT site_name UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    description      text        NOT NULL CHECK (char_length(description) <= 256),
    labels           jsonb       NOT NULL CHECK (jsonb_typeof(labels) = 'object'),
    -- Where the gateway answers; null means that it has to speak first.
    endpoint_address inet        CHECK (masklen(endpoint_address) = CASE family(endpoint_address) WHEN 4 THEN 32 ELSE 128 END),
    endpoint_port    integer     CHECK (endpoint_port BETWEEN 1 AND 65535),
    created_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((endpoint_address IS NULL) = (endpoint_port IS NULL)),
    CONSTRAINT site_endpoint UNIQUE (endpoint_address, endpoint_port)
);

-- No two prefixes of the mesh share an address, whatever code races.
CREATE TABLE subnets (
    prefix inet NOT NULL CHECK (prefix = network(prefix)),
    site   uuid NOT NULL REFERENCES sites ON DELETE CASCADE,
    CONSTRAINT subnets_do_not_overlap EXCLUDE USING gist (prefix inet_ops WITH &&)
);
CREATE INDEX subnets_of_site ON subnets (site);

CREATE TABLE nodes (
    id                  uuid        PRIMARY KEY,
    -- Null once the site is gone. The row stays: a revoked key never enrols again.
    site                uuid        REFERENCES sites ON DELETE SET NULL,
    name                text        NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    state               text        NOT NULL CHECK (state IN ('active', 'standby', 'revoked')),
    identity_key        bytea       NOT NULL CONSTRAINT node_identity_key UNIQUE CHECK (octet_length(identity_key) = 32),
    wireguard_key       bytea       NOT NULL CONSTRAINT node_wireguard_key UNIQUE CHECK (octet_length(wireguard_key) = 32),
    -- As the node wrote it, byte for byte.
    statement           text        NOT NULL,
    statement_signature bytea       NOT NULL CHECK (octet_length(statement_signature) = 64),
    -- Null means: as the site says.
    endpoint_address    inet        CHECK (masklen(endpoint_address) = CASE family(endpoint_address) WHEN 4 THEN 32 ELSE 128 END),
    endpoint_port       integer     CHECK (endpoint_port BETWEEN 1 AND 65535),
    agent_version       text        NOT NULL,
    generation          integer     NOT NULL CHECK (generation > 0),
    -- The join token with which it enrolled.
    join_token          uuid        NOT NULL,
    enrolled_at         timestamptz NOT NULL DEFAULT now(),
    revoked_at          timestamptz,
    CHECK ((state = 'revoked') = (revoked_at IS NOT NULL)),
    CHECK (state = 'revoked' OR site IS NOT NULL),
    CHECK ((endpoint_address IS NULL) = (endpoint_port IS NULL))
);
CREATE UNIQUE INDEX node_name ON nodes (name) WHERE state <> 'revoked';
CREATE UNIQUE INDEX node_endpoint ON nodes (endpoint_address, endpoint_port) WHERE state <> 'revoked';
CREATE UNIQUE INDEX one_active_node_per_site ON nodes (site) WHERE state = 'active';

CREATE TABLE tunnel_addresses (
    address inet    CONSTRAINT tunnel_address PRIMARY KEY CHECK (masklen(address) = 32),
    site    uuid    NOT NULL REFERENCES sites ON DELETE CASCADE,
    -- Null for a site's own address while no gateway has it.
    node    uuid    UNIQUE REFERENCES nodes,
    -- Whether it is the site's own: handed out with the site, taken over by its first gateway, and given back to the site.
    own     boolean NOT NULL,
    CHECK (own OR node IS NOT NULL)
);
CREATE UNIQUE INDEX one_own_tunnel_address_per_site ON tunnel_addresses (site) WHERE own;

CREATE TABLE join_tokens (
    id          uuid        PRIMARY KEY,
    site        uuid        NOT NULL REFERENCES sites ON DELETE CASCADE,
    secret_hash bytea       NOT NULL CHECK (octet_length(secret_hash) = 32),
    uses_left   integer     NOT NULL CHECK (uses_left >= 0),
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX join_tokens_of_site ON join_tokens (site);

CREATE TABLE api_tokens (
    id          uuid        PRIMARY KEY,
    name        text        NOT NULL,
    role        text        NOT NULL CHECK (role IN ('viewer', 'operator', 'owner')),
    secret_hash bytea       NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);

-- What each revision changed: what coordinators follow.
CREATE TABLE changes (
    revision bigint      PRIMARY KEY,
    epoch    bigint      NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    changes  jsonb       NOT NULL CHECK (jsonb_typeof(changes) = 'array')
);

-- Who did what: the audit log.
CREATE TABLE events (
    id         bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text        NOT NULL,
    action     text        NOT NULL,
    object     text        NOT NULL,
    -- Null for what is not configuration, a token for example.
    revision   bigint,
    request_id text
);

-- What the two ends of a link last said of it; an end is written only when what it says changes.
CREATE TABLE links (
    a       uuid        NOT NULL REFERENCES nodes,
    b       uuid        NOT NULL REFERENCES nodes,
    -- Whether the end has a fresh handshake; null means that it has not reported.
    a_up    boolean,
    -- Whether it ever had one.
    a_ever  boolean     NOT NULL DEFAULT false,
    a_since timestamptz,
    b_up    boolean,
    b_ever  boolean     NOT NULL DEFAULT false,
    b_since timestamptz,
    PRIMARY KEY (a, b),
    CHECK (a < b)
);
CREATE INDEX links_of_b ON links (b);

-- When a node last reported, to within a minute: a node that is silent keeps no link up.
CREATE TABLE node_reports (
    node uuid        PRIMARY KEY REFERENCES nodes,
    at   timestamptz NOT NULL
);
