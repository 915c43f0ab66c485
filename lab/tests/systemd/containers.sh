# The coordinator and an agent in containers, as docker-compose.yml and the Dockerfile say. The images
# that they come from stand for those of a registry, which no machine of the lab reaches.
install -D -m 755 /opt/wattle/programs/wattle-agent /usr/bin/wattle-agent
install_networks
systemctl start docker
export DOCKER_BUILDKIT=1
docker import /opt/image.tar debian:12.12-slim >/dev/null

# Postgres' image, as far as docker-compose.yml relies on it: while it makes the database, it answers
# on its socket alone.
mkdir /run/postgres-image
cat >/run/postgres-image/start <<'END'
#!/bin/sh -e
data=/var/lib/postgresql/data
PATH=$PATH:$(echo /usr/lib/postgresql/*/bin)
export PATH
if [ ! -e $data/PG_VERSION ]; then
    printf %s "$POSTGRES_PASSWORD" >/tmp/password
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 $data
    echo "host all all all scram-sha-256" >>$data/pg_hba.conf
    pg_ctl --wait --options='-c listen_addresses=' --pgdata=$data start
    PGPASSWORD=$POSTGRES_PASSWORD createdb --host=/var/run/postgresql --username="$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl --wait --pgdata=$data stop
fi
exec postgres -c listen_addresses='*' -D $data
END
cat >/run/postgres-image/Dockerfile <<'END'
FROM debian:12.12-slim
COPY start /
RUN chmod 755 /start && install --directory --owner=postgres --mode=700 \
        /var/lib/postgresql/data /var/run/postgresql \
    && ln -s /usr/lib/postgresql/*/bin/pg_isready /usr/local/bin/
USER postgres
VOLUME /var/lib/postgresql/data
ENTRYPOINT ["/start"]
END
docker build --quiet --tag "$(sed -n 's/ *image: \(postgres:.*\)/\1/p' /opt/wattle/docker-compose.yml)" /run/postgres-image

# A checkout, as far as the steps need it. They are the first lines of the file.
mkdir -p /srv/wattle/target
cd /srv/wattle
cp /opt/wattle/.dockerignore /opt/wattle/Dockerfile /opt/wattle/docker-compose.yml .
cp -r /opt/wattle/packages target/package
sed -n '/^services:/q; s/^#   //p' docker-compose.yml >/run/steps
[ "$(grep -c . /run/steps)" = 7 ] || fail "these are the steps: $(cat /run/steps)"
sed -i "/^scripts.package/d; s/ADDRESS-THAT-GATEWAYS-REACH/198.18.0.1/" /run/steps
start=$(date +%s)
sh -ex /run/steps >/run/up 2>&1 || fail "$(cat /run/up; docker compose logs)"
export CURL_CA_BUNDLE=$PWD/ca.crt
echo "both containers are ready after $(($(date +%s) - start)) s"
# From here on by their names, as compose is slow to start.
server=$(docker compose ps --quiet server)
postgres=$(docker compose ps --quiet postgres)
token=$(docker exec "$server" cat /var/lib/wattle-server/api-token)
grep -q "$token" /run/up || fail "the steps do not show the api token: $(cat /run/up)"
docker exec "$server" wattle-server healthcheck

api() {
    path=$1
    shift
    curl --silent --show-error --fail-with-body --max-time 10 \
        --header "Authorization: Bearer $token" "$url$path" "$@"
}
create_sites

# A gateway on another host, and one in a container on this one.
ip netns exec cork wattle-agent --state-dir /var/lib/cork join - </run/cork
docker build --quiet --target agent --tag wattle-agent .
docker run --detach --name agent --network=host --cap-add=NET_ADMIN --device=/dev/net/tun \
    --volume=agent:/var/lib/wattle wattle-agent
docker exec --interactive agent wattle-agent join - </run/dublin
wait_for 30 ping -c 1 -W 1 10.20.0.1
ip netns exec cork ping -c 1 -W 1 10.10.0.1
[ "$(docker exec agent id -u)" = 10002 ] || fail "the agent runs as another user"
[ "$(docker exec "$server" id -u)" = 10001 ] || fail "the coordinator runs as another user"
! grep -q "^CapEff:.*[1-9a-f]" /proc/"$(docker inspect --format '{{.State.Pid}}' "$server")"/status ||
    fail "the coordinator has rights"

# Without its database a coordinator waits, says so, and is not healthy. Tunnels go on.
health() {
    [ "$(docker inspect --format '{{.State.Health.Status}}' "$server")" = "$1" ]
}
docker stop --time 5 "$postgres"
docker restart --time 5 "$server"
waits() {
    docker logs "$server" 2>&1 | grep "is not there yet, tries again"
}
wait_for 30 waits
wait_for 60 health unhealthy
ping -c 1 -W 1 10.20.0.1
docker start "$postgres"
wait_for 60 health healthy

# Away and back, with all that it knew. The agent follows.
docker compose down --timeout 5
docker compose up --detach --wait
connected() {
    docker exec agent wattle-agent status | grep "connected to"
}
wait_for 60 connected
api /sites | jq --exit-status '.items | length == 2'
docker restart --time 5 agent
wait_for 60 connected
ping -c 1 -W 1 10.20.0.1
