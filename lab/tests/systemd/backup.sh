# docs/backup.md, typed as it stands.
url=https://coordinator.example:8443
echo "198.18.0.1 coordinator.example database.example" >>/etc/hosts
install_wattle
install_networks
join_both

guide backup.md
backup_and_restore() {
    step # a private Postgres
    wait_for 30 api /readyz
    api /sites --data '{"name": "oslo"}' >/dev/null
    step # restored
    wait_for 60 follows
}
without_loss "a backup and its restore" backup_and_restore
api /sites | jq --exit-status '[.items[].name] | sort == ["cork", "dublin"]' || fail "$(api /sites)"
[ -n "$(ls -A /var/lib/wattle-server.*)" ] || fail "nothing is kept"

# The same on a host that never had a coordinator.
systemctl disable --now wattle-server
step=$((step - 1))
rm -rf /var/lib/wattle-server /var/lib/wattle-server.*
step
wait_for 60 follows

# A Postgres of somebody's, with a mesh of its own.
systemctl stop wattle-server
rm -r /var/lib/wattle-server/*
make_postgres
echo 'database_url = "postgres://wattle:secret@database.example/wattle"' >>/etc/wattle/server.toml
systemctl start wattle-server
TOKEN=$(wattle-server token create --name me --role operator)
export CURL_CA_BUNDLE=/var/lib/wattle-server/ca.crt
curl -sf -H "Authorization: Bearer $TOKEN" $url/sites -d '{"name": "bergen"}' >/dev/null
step # dumped
# The host is lost with it, and another shell types the rest.
systemctl disable --now wattle-server
rm -rf /var/lib/wattle-server /etc/wattle/server.toml
runuser -u postgres -- dropdb --force wattle
runuser -u postgres -- createdb --owner=wattle wattle
unset backup
step # restored
wait_for 30 wattle-server healthcheck
curl -sf -H "Authorization: Bearer $TOKEN" $url/sites | jq --exit-status '.items[0].name == "bergen"'
step # looked at
end_of_guide
