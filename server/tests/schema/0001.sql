-- A row in each table of 0001_schema.sql.
INSERT INTO mesh (id, tunnel_prefix, listen_port, keepalive_s, epoch, revision, challenge_secret)
VALUES ('00000000-0000-0000-0000-000000000001', '10.99.0.0/16', 51820, 25, 1, 1,
    decode(repeat('11', 32), 'hex'));
INSERT INTO sites (id, name, description, labels, endpoint_address, endpoint_port)
VALUES ('00000000-0000-0000-0000-000000000011', 'dublin', 'a site', '{"region": "eu"}',
    '203.0.113.1', 51820);
INSERT INTO subnets (prefix, site)
VALUES ('10.10.0.0/16', '00000000-0000-0000-0000-000000000011');
INSERT INTO nodes (id, site, name, state, identity_key, wireguard_key, statement,
    statement_signature, highest_sequence, agent_version, generation, join_token)
VALUES ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0000-000000000011', 'dublin-1',
    'active', decode(repeat('21', 32), 'hex'), decode(repeat('22', 32), 'hex'), 'a statement',
    decode(repeat('23', 64), 'hex'), 1, '0.1.0', 1, '00000000-0000-0000-0000-000000000031');
INSERT INTO nodes (id, site, name, state, identity_key, wireguard_key, statement,
    statement_signature, highest_sequence, generation, file_made_at, file_digest)
VALUES ('00000000-0000-0000-0000-000000000022', '00000000-0000-0000-0000-000000000011', 'dublin-2',
    'standby', decode(repeat('24', 32), 'hex'), decode(repeat('25', 32), 'hex'), 'a statement',
    decode(repeat('26', 64), 'hex'), 1, 1, '2026-01-01', decode(repeat('27', 32), 'hex'));
INSERT INTO former_identities (identity_key, node)
VALUES (decode(repeat('28', 32), 'hex'), '00000000-0000-0000-0000-000000000021');
INSERT INTO former_keys (wireguard_key, node)
VALUES (decode(repeat('29', 32), 'hex'), '00000000-0000-0000-0000-000000000021');
INSERT INTO armed_peers (node, sequence, peer, signature)
VALUES ('00000000-0000-0000-0000-000000000021', 1, '00000000-0000-0000-0000-000000000022',
    decode(repeat('2a', 64), 'hex'));
INSERT INTO tunnel_addresses (address, site, node, own)
VALUES ('10.99.0.1', '00000000-0000-0000-0000-000000000011',
    '00000000-0000-0000-0000-000000000021', true);
INSERT INTO join_tokens (id, site, secret_hash, uses_left, expires_at)
VALUES ('00000000-0000-0000-0000-000000000031', '00000000-0000-0000-0000-000000000011',
    decode(repeat('31', 32), 'hex'), 1, '2026-01-01');
INSERT INTO api_tokens (id, name, role, secret_hash)
VALUES ('00000000-0000-0000-0000-000000000041', 'first start', 'owner',
    decode(repeat('41', 32), 'hex'));
INSERT INTO authorities (pin) VALUES (decode(repeat('51', 32), 'hex'));
INSERT INTO coordinator_addresses (coordinator, host, address)
VALUES ('00000000-0000-0000-0000-0000000000a1', 'coordinator.example', '198.18.0.2');
INSERT INTO changes (revision, epoch, changes) VALUES (1, 1, '[]');
INSERT INTO events
    (number, at, actor, actor_name, action, object, object_name, object_site, changes, hash)
VALUES (1, '2026-01-01', 'command line', 'command line', 'site.create',
    '00000000-0000-0000-0000-000000000011', 'dublin', 'dublin', '[]',
    decode(repeat('61', 32), 'hex'));
INSERT INTO answers (id, request, sealed)
VALUES (decode(repeat('71', 32), 'hex'), decode(repeat('72', 32), 'hex'), '\x01');
INSERT INTO psk_messages (sender, recipient, message, signature)
VALUES ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0000-000000000022', 'a message',
    decode(repeat('81', 64), 'hex'));
INSERT INTO links (a, b, a_state, a_ever, state)
VALUES ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0000-000000000022', 'up', true,
    'up');
INSERT INTO link_history (a, b, at, state)
VALUES ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0000-000000000022',
    '2026-01-01', 'up');
INSERT INTO node_reports (node, at) VALUES ('00000000-0000-0000-0000-000000000021', '2026-01-01');
INSERT INTO report_numbers (node, number)
VALUES ('00000000-0000-0000-0000-000000000021', 1767225600000);
INSERT INTO webhooks (id, url)
VALUES ('00000000-0000-0000-0000-000000000091', 'https://hook.example/');
INSERT INTO webhook_news (a, b, before, after)
VALUES ('00000000-0000-0000-0000-000000000021', '00000000-0000-0000-0000-000000000022', 'up',
    'down');
INSERT INTO webhook_deliveries (id, webhook, body)
VALUES ('00000000-0000-0000-0000-000000000092', '00000000-0000-0000-0000-000000000091', '{}');
INSERT INTO removals (node, removal, signature)
VALUES ('00000000-0000-0000-0000-000000000024', '{}', decode(repeat('83', 64), 'hex'));
