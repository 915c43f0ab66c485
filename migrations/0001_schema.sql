-- One database is one mesh. See ARCHITECTURE.md for the words.
--
-- Later migrations only add: tables, columns, indexes, constraints.

CREATE TABLE mesh (
    -- There is exactly one row.
    only_row         boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    id               uuid        NOT NULL,
    tunnel_prefix    inet        NOT NULL
        CHECK (family(tunnel_prefix) = 4 AND tunnel_prefix = network(tunnel_prefix)),
    listen_port      integer     NOT NULL CHECK (listen_port BETWEEN 1 AND 65535),
    -- 0 means none.
    keepalive_s      integer     NOT NULL CHECK (keepalive_s BETWEEN 0 AND 65535),
    -- Goes up when the database is restored from a backup.
    epoch            bigint      NOT NULL CHECK (epoch > 0),
    -- Each change of configuration takes the next one, last in its transaction, so that revisions
    -- are in the order of the commits.
    revision         bigint      NOT NULL CHECK (revision >= 0),
    -- Ephemeral keys of enrolment are derived from it.
    challenge_secret bytea       NOT NULL CHECK (octet_length(challenge_secret) = 32),
    created_at       timestamptz NOT NULL DEFAULT now(),
    -- Whether packets may pass without a preshared key.
    psk              text        NOT NULL DEFAULT 'prefer' CHECK (psk IN ('require', 'prefer')),
    -- The end of the audit log; a transaction that holds the row's lock writes the next event.
    event_number     bigint      NOT NULL DEFAULT 0,
    event_hash       bytea       NOT NULL
        DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000'
        CHECK (octet_length(event_hash) = 32),
    -- How the health of links is judged.
    probes           boolean     NOT NULL DEFAULT true,
    lossy_percent    integer     NOT NULL DEFAULT 10  CHECK (lossy_percent BETWEEN 1 AND 100),
    slow_ms          integer     NOT NULL DEFAULT 500 CHECK (slow_ms BETWEEN 1 AND 60000),
    -- Days for which a node uses a WireGuard key; 0 means that it keeps it.
    rotate_days      integer     NOT NULL DEFAULT 0 CHECK (rotate_days BETWEEN 0 AND 3650)
);

CREATE TABLE sites (
    id               uuid        PRIMARY KEY,
    name             text        NOT NULL
        CONSTRAINT site_name UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    description      text        NOT NULL CHECK (char_length(description) <= 256),
    labels           jsonb       NOT NULL CHECK (jsonb_typeof(labels) = 'object'),
    -- Where the gateway answers; null means that it has to speak first.
    endpoint_address inet
        CHECK (masklen(endpoint_address)
            = CASE family(endpoint_address) WHEN 4 THEN 32 ELSE 128 END),
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
    -- Whether the name is made of the site's and changes with it; false once somebody has given the
    -- node a name of its own.
    name_follows_site   boolean     NOT NULL DEFAULT true,
    state               text        NOT NULL CHECK (state IN ('active', 'standby', 'revoked')),
    identity_key        bytea       NOT NULL
        CONSTRAINT node_identity_key UNIQUE CHECK (octet_length(identity_key) = 32),
    wireguard_key       bytea       NOT NULL
        CONSTRAINT node_wireguard_key UNIQUE CHECK (octet_length(wireguard_key) = 32),
    -- As the node wrote it, byte for byte.
    statement           text        NOT NULL,
    statement_signature bytea       NOT NULL CHECK (octet_length(statement_signature) = 64),
    -- Null means: as the site says.
    endpoint_address    inet
        CHECK (masklen(endpoint_address)
            = CASE family(endpoint_address) WHEN 4 THEN 32 ELSE 128 END),
    endpoint_port       integer     CHECK (endpoint_port BETWEEN 1 AND 65535),
    -- Null for a gateway without an agent, which takes a wg-quick file.
    agent_version       text,
    -- Of the tokens that the node signs: those of an earlier one are refused.
    generation          integer     NOT NULL CHECK (generation > 0),
    -- When the node raised it; null while it has not.
    generation_since    timestamptz,
    -- The join token with which it enrolled; null for a gateway without an agent, and for one that
    -- a restored database had lost and that was taken in again.
    join_token          uuid,
    enrolled_at         timestamptz NOT NULL DEFAULT now(),
    revoked_at          timestamptz,
    -- An operator's word that the node may be in the mesh, byte for byte. The operator's key is
    -- never here.
    admission           text        CHECK (octet_length(admission) <= 16384),
    admission_signature bytea       CHECK (octet_length(admission_signature) = 64),
    -- The highest number that the node ever stated or announced: none is used twice.
    highest_sequence    bigint      NOT NULL CHECK (highest_sequence > 0),
    -- What the node is going to state once it has taken up its next key, as it wrote it.
    announced           text,
    announced_signature bytea       CHECK (octet_length(announced_signature) = 64),
    announced_key       bytea
        CONSTRAINT node_announced_key UNIQUE CHECK (octet_length(announced_key) = 32),
    announced_at        timestamptz,
    -- Since when the node waits for its turn to announce one, and when it last asked; null for never.
    turn_since          timestamptz,
    turn_asked_at       timestamptz,
    -- When somebody asked for a new key; null once the node has one.
    rotate_since        timestamptz,
    -- Whether a peer has met the node at the endpoint that it names itself, and which peer tries
    -- it.
    endpoint_verified   boolean     NOT NULL DEFAULT true,
    endpoint_tried_by   uuid,
    endpoint_tried_at   timestamptz,
    endpoint_tries      integer     NOT NULL DEFAULT 0 CHECK (endpoint_tries >= 0),
    -- When the node's last file was made; null for a node with an agent.
    file_made_at        timestamptz,
    -- SHA-256 of what that file says, but for its secrets, which are nowhere here.
    file_digest         bytea       CHECK (octet_length(file_digest) = 32),
    CHECK ((state = 'revoked') = (revoked_at IS NOT NULL)),
    CHECK (state = 'revoked' OR site IS NOT NULL),
    CHECK ((endpoint_address IS NULL) = (endpoint_port IS NULL)),
    CHECK ((admission IS NULL) = (admission_signature IS NULL)),
    CHECK ((endpoint_tried_by IS NULL) = (endpoint_tried_at IS NULL)),
    CHECK ((turn_since IS NULL) = (turn_asked_at IS NULL)),
    CONSTRAINT announced_whole
        CHECK (num_nulls(announced, announced_signature, announced_key, announced_at) IN (0, 4)),
    CONSTRAINT agent_or_file CHECK (
        (num_nulls(agent_version), num_nulls(file_made_at, file_digest)) IN ((0, 2), (1, 0))
            AND (join_token IS NULL OR agent_version IS NOT NULL))
);
CREATE UNIQUE INDEX node_name ON nodes (name) WHERE state <> 'revoked';
CREATE UNIQUE INDEX node_endpoint ON nodes (endpoint_address, endpoint_port)
    WHERE state <> 'revoked';
CREATE UNIQUE INDEX one_active_node_per_site ON nodes (site) WHERE state = 'active';

-- Identities that nodes had before those that they have now: none of them ever enrols again.
CREATE TABLE former_identities (
    identity_key bytea PRIMARY KEY CHECK (octet_length(identity_key) = 32),
    node         uuid  NOT NULL REFERENCES nodes
);

-- WireGuard keys that nodes had or announced before those that they have now: none of them ever
-- enrols again, nor is it announced again.
CREATE TABLE former_keys (
    wireguard_key bytea       PRIMARY KEY CHECK (octet_length(wireguard_key) = 32),
    node          uuid        NOT NULL REFERENCES nodes,
    since         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX former_keys_of_node ON former_keys (node, since);

-- Which peers are ready for the key that a node has announced; rows are of no use once the key is
-- taken up or withdrawn.
CREATE TABLE armed_peers (
    node      uuid   NOT NULL REFERENCES nodes,
    -- Number of the announced statement.
    sequence  bigint NOT NULL,
    peer      uuid   NOT NULL REFERENCES nodes,
    -- The peer's word for the node.
    signature bytea  NOT NULL CHECK (octet_length(signature) = 64),
    PRIMARY KEY (node, sequence, peer)
);
CREATE INDEX armed_peers_of_peer ON armed_peers (peer);

-- What an operator signed of a node that is out of the mesh, byte for byte: of one that was revoked,
-- or of one that a restored database does not have.
CREATE TABLE removals (
    node      uuid  PRIMARY KEY,
    removal   text  NOT NULL CHECK (octet_length(removal) <= 1024),
    signature bytea NOT NULL CHECK (octet_length(signature) = 64)
);

CREATE TABLE tunnel_addresses (
    address inet    CONSTRAINT tunnel_address PRIMARY KEY CHECK (masklen(address) = 32),
    site    uuid    NOT NULL REFERENCES sites ON DELETE CASCADE,
    -- Null for a site's own address while no gateway has it.
    node    uuid    UNIQUE REFERENCES nodes,
    -- Whether it is the site's own: handed out with the site, taken over by its first gateway, and
    -- given back to the site.
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
    id           uuid        PRIMARY KEY,
    name         text        NOT NULL,
    role         text        NOT NULL CHECK (role IN ('viewer', 'operator', 'owner')),
    secret_hash  bytea       NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at   timestamptz NOT NULL DEFAULT now(),
    revoked_at   timestamptz,
    -- Null means that it does not expire.
    expires_at   timestamptz,
    -- To within a minute.
    last_used_at timestamptz
);

-- The certificate authorities that agents are to trust, by the SHA-256 of their certificates. Their
-- keys are never here.
CREATE TABLE authorities (
    pin     bytea       PRIMARY KEY CHECK (octet_length(pin) = 32),
    made_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Where coordinators are, as each of them found out: gateways reach them outside of the mesh, so no
-- subnet may hold an address at which agents look for them.
CREATE TABLE coordinator_addresses (
    -- Drawn at each start of a coordinator.
    coordinator uuid        NOT NULL,
    -- The host of a URL; null for an address of the coordinator's own interfaces.
    host        text        CHECK (octet_length(host) <= 512),
    address     inet        NOT NULL
        CHECK (masklen(address) = CASE family(address) WHEN 4 THEN 32 ELSE 128 END),
    -- When the coordinator last found it, or kept it because nobody told it another.
    found_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (coordinator, host, address)
);

-- What each of the last revisions changed: what coordinators follow.
CREATE TABLE changes (
    revision bigint      PRIMARY KEY,
    epoch    bigint      NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    changes  jsonb       NOT NULL CHECK (jsonb_typeof(changes) = 'array')
);

-- The audit log, a chain: who did what.
CREATE TABLE events (
    -- Without gaps.
    number      bigint      PRIMARY KEY,
    at          timestamptz NOT NULL,
    actor       text        NOT NULL,
    -- Names as they were then: they are told after what has them is gone.
    actor_name  text        NOT NULL,
    actor_site  text,
    action      text        NOT NULL,
    object      text        NOT NULL,
    object_name text        NOT NULL,
    object_site text,
    -- Field by field, what the object was and is. Hashed as it stands, so json, not jsonb.
    changes     json        NOT NULL,
    -- Null for what is not configuration, a token for example.
    revision    bigint,
    request_id  text,
    -- SHA-256 of the object as the event found it and left it; null for none.
    before      bytea       CHECK (octet_length(before) = 32),
    after       bytea       CHECK (octet_length(after) = 32),
    -- Over all of this and the hash of the event before.
    hash        bytea       NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX events_of_object ON events (object, number);
CREATE INDEX events_of_name ON events (object_name, number);
CREATE INDEX events_of_actor ON events (actor, at);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only ever added to';
END $$;
CREATE TRIGGER events_are_only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

-- Answers to changes that came with an Idempotency-Key, for a day: the same request gets the same
-- answer. An answer may hold a secret that is shown once; it is sealed with a key that only its
-- caller can derive.
CREATE TABLE answers (
    -- Derived from the caller's api token and Idempotency-Key, neither of which it tells.
    id      bytea       PRIMARY KEY CHECK (octet_length(id) = 32),
    -- SHA-256 of the request.
    request bytea       NOT NULL CHECK (octet_length(request) = 32),
    -- Null only until the transaction ends that carries the request out.
    sealed  bytea,
    made_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX answers_by_age ON answers (made_at);

-- Messages with which two nodes agree on the preshared key of their tunnel, while they are on their
-- way: sealed for their recipient and signed by their sender. Or the preshared key of a tunnel with
-- a gateway without an agent, sealed for the recipient. No key is ever here in the clear.
CREATE TABLE psk_messages (
    sender    uuid        NOT NULL REFERENCES nodes,
    recipient uuid        NOT NULL REFERENCES nodes,
    -- A message that takes the place of another has a number of its own, so that a recipient takes
    -- away only what it has read.
    id        bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    -- As the sender wrote it, byte for byte.
    message   text        CHECK (octet_length(message) <= 2048),
    signature bytea       CHECK (octet_length(signature) = 64),
    posted_at timestamptz NOT NULL DEFAULT now(),
    sealed    bytea       CHECK (octet_length(sealed) = 80),
    -- When the file was made that has the same key, in milliseconds since 1970.
    made_ms   bigint      CHECK (made_ms > 0),
    PRIMARY KEY (sender, recipient),
    CONSTRAINT letter_or_given
        CHECK ((num_nulls(message, signature), num_nulls(sealed, made_ms)) IN ((0, 2), (2, 0)))
);
CREATE INDEX psk_messages_of_recipient ON psk_messages (recipient, id);

-- What the two ends of a link last said of it; an end is written only when what it says changes.
CREATE TABLE links (
    a          uuid        NOT NULL REFERENCES nodes,
    b          uuid        NOT NULL REFERENCES nodes,
    -- What the end says; null means that it has not reported.
    a_state    text        CHECK (a_state IN ('up', 'lossy', 'slow', 'one_way', 'down')),
    -- Whether it ever had a handshake.
    a_ever     boolean     NOT NULL DEFAULT false,
    a_since    timestamptz,
    b_state    text        CHECK (b_state IN ('up', 'lossy', 'slow', 'one_way', 'down')),
    b_ever     boolean     NOT NULL DEFAULT false,
    b_since    timestamptz,
    -- Whether the end knows its state from probes.
    a_probed   boolean     NOT NULL DEFAULT false,
    b_probed   boolean     NOT NULL DEFAULT false,
    -- When an end was written last.
    written_at timestamptz NOT NULL DEFAULT now(),
    -- What its history says last; null means nothing.
    state      text        CHECK (state IN ('up', 'degraded', 'down', 'never')),
    fault      text        CHECK (fault IN ('asymmetric', 'silent', 'lossy', 'slow')),
    PRIMARY KEY (a, b),
    CHECK (a < b)
);
CREATE INDEX links_of_b ON links (b);
CREATE INDEX links_written ON links (written_at);

-- When links changed their state, in the last 30 days.
CREATE TABLE link_history (
    a     uuid        NOT NULL,
    b     uuid        NOT NULL,
    at    timestamptz NOT NULL,
    state text        NOT NULL CHECK (state IN ('up', 'degraded', 'down', 'never')),
    fault text        CHECK (fault IN ('asymmetric', 'silent', 'lossy', 'slow')),
    PRIMARY KEY (a, b, at),
    FOREIGN KEY (a, b) REFERENCES links ON DELETE CASCADE
);
CREATE INDEX link_history_at ON link_history (at);

-- When a node last reported, to within a minute: a node that is silent keeps no link up.
CREATE TABLE node_reports (
    node         uuid        PRIMARY KEY REFERENCES nodes,
    at           timestamptz NOT NULL,
    -- Which start of its agent the node last reported from, so that two machines that run on copies
    -- of one state directory are noticed: how often an agent was started on the state directory
    -- (null for an agent that does not say), and what that start drew.
    start_number bigint,
    start_drawn  bigint,
    -- Whether webhooks were last told that the node is silent.
    silent       boolean     NOT NULL DEFAULT false,
    -- Peers that its host has only until somebody confirms that they go; null for none.
    held         jsonb       CHECK (jsonb_typeof(held) = 'object'),
    -- Ids of nodes that it knows as removed and that were back.
    returned     jsonb       NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(returned) = 'array'),
    -- Whether its host requires the lock.
    locked       boolean     NOT NULL DEFAULT false,
    -- What keeps its host from what the mesh wants, or its LANs from others, each with since when.
    problems     jsonb       NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(problems) = 'array'),
    -- Whether webhooks were last told that its LANs are kept from others.
    lan_degraded boolean     NOT NULL DEFAULT false,
    -- Which position its host had then.
    epoch        bigint      NOT NULL DEFAULT 0,
    revision     bigint      NOT NULL DEFAULT 0,
    CHECK ((start_number IS NULL) = (start_drawn IS NULL))
);

-- The highest number of each node's reports: one that is late, or sent again, changes nothing.
CREATE TABLE report_numbers (
    node   uuid   PRIMARY KEY REFERENCES nodes,
    -- Milliseconds since 1970.
    number bigint NOT NULL
);

-- Who is told of links that change their state. What signs the messages is derived from the mesh's
-- secret and the id.
CREATE TABLE webhooks (
    id           uuid        PRIMARY KEY,
    url          text        NOT NULL CHECK (octet_length(url) <= 2048),
    created_at   timestamptz NOT NULL DEFAULT now(),
    delivered_at timestamptz,
    -- Why the last attempt failed; null when it did not.
    error        text
);

-- Changes that nobody was told of yet: they wait for others that belong to them. Of a link: a and b
-- are its ends. Of a node: a is the node, after is what became of it, and name is its name.
CREATE TABLE webhook_news (
    number bigint      PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    at     timestamptz NOT NULL DEFAULT now(),
    a      uuid        NOT NULL,
    b      uuid,
    before text,
    after  text        NOT NULL,
    name   text,
    CHECK (num_nonnulls(b, before) = CASE WHEN name IS NULL THEN 2 ELSE 0 END)
);

-- Messages on their way.
CREATE TABLE webhook_deliveries (
    id       uuid        PRIMARY KEY,
    webhook  uuid        NOT NULL REFERENCES webhooks ON DELETE CASCADE,
    body     text        NOT NULL,
    attempts integer     NOT NULL DEFAULT 0,
    -- When to try next; a coordinator that tries moves it on first.
    next_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (next_at);
