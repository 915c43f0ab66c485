# docs/install.md and docs/upgrade.md, typed as they stand.
rm /etc/systemd/system-preset/00-wattle.preset
echo "198.18.0.1 coordinator.example packages.example" >>/etc/hosts
export HOME=/root
mkdir -p /root/packages
cd /root/packages
cp "$agent_deb" "$server_deb" .
install_networks

guide install.md
step # the coordinator's package
step # its URL
step # a token
step >/run/command # a site
step # the agent's package
tail -n 1 /run/command | sh -e
step # the status
coordinator=https://coordinator.example:8443
systemctl start cork-agent
curl -sf -H "Authorization: Bearer $TOKEN" $coordinator/sites \
    -d '{"name": "cork", "endpoint": "198.18.0.2:51820", "subnets": ["10.20.0.0/24"]}' |
    jq -r .join_token.join_string | ip netns exec cork wattle-agent --state-dir /var/lib/cork join -
wait_for 30 wattle-agent verify
step # verify
end_of_guide

# What the coordinator says of packages, and a machine that joins by its user data alone.
sed -n '/^```toml/,/^```$/{/^```/d;p}' /opt/wattle/docs/install.md >/run/toml
sed -i '/^#packages/r /run/toml' /etc/wattle/server.toml
systemctl restart wattle-server
wait_for 30 wattle-server healthcheck
curl -sf -H "Authorization: Bearer $TOKEN" $coordinator/sites/dublin/join-tokens -d '{}' >/run/token
sed -n '/^```yaml/,/^```$/{/^```/d;p}' /opt/wattle/docs/install.md >/run/user-data
file=$(sed -n 's/.*curl .*"\(https.*\)"$/\1/p' /run/user-data)
jq -r .install.deb /run/token | grep -F "\"$file\"" || fail "$file is not $(jq .install /run/token)"
rpm=$(basename $packages/wattle-agent-*.rpm)
eval "echo $(jq -r .install.rpm /run/token)" | grep "/$rpm$" || fail "$rpm is not $(jq .install /run/token)"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=packages.example \
    -addext subjectAltName=DNS:packages.example -keyout /run/packages.key \
    -out /usr/local/share/ca-certificates/packages.crt 2>/dev/null
update-ca-certificates >/dev/null
mkdir -p /srv/packages
cp -r $packages /srv/packages/wattle
python3 - <<'END' &
import functools, http.server, ssl
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/srv/packages")
server = http.server.ThreadingHTTPServer(("", 443), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/usr/local/share/ca-certificates/packages.crt", "/run/packages.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
END

curl -sf -X DELETE -H "Authorization: Bearer $TOKEN" $coordinator/nodes/dublin >/dev/null
dpkg --purge wattle-agent
seed=/var/lib/cloud/seed/nocloud
mkdir -p $seed
echo "instance-id: dublin" >$seed/meta-data
sed "s/JOIN-STRING/$(jq -r .join_string /run/token)/" /run/user-data >$seed/user-data
cat >/etc/cloud/cloud.cfg.d/99-lab.cfg <<'END'
datasource_list: [NoCloud]
cloud_init_modules: [write_files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts_user]
END
cloud-init init --local
cloud-init init
cloud-init modules --mode=config
cloud-init modules --mode=final
wait_for 30 ping -c 1 -W 1 10.20.0.1
[ ! -e /run/wattle.join ] || fail "the join string is there"

guide upgrade.md
mkdir -p /root/next
cd /root/next
of_version "$agent_deb" +next "$PWD/wattle-agent_next.deb"
of_version "$server_deb" +next "$PWD/wattle-server_next.deb"
before=$(property wattle-agent MainPID)
step # the coordinator
step # a gateway
is_another wattle-agent "$before" || fail "the old agent runs on"
dpkg-query --show wattle-agent | grep '+next$'
cd /root/packages
step # back
dpkg-query --show wattle-server | grep -v '+next$'
end_of_guide
wait_for 30 ping -c 1 -W 1 10.20.0.1
