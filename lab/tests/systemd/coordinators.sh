# docs/several-coordinators.md, typed as it stands. The second coordinator's host is the namespace cork,
# with files of its own.
printf '198.18.0.1 a.example db.example\n198.18.0.2 b.example\n' >>/etc/hosts
install_wattle
install_networks
make_postgres

mkdir -p /srv/b/settings /srv/b/data
printf 'listen = "0.0.0.0:8443"\n' | tee /etc/wattle/server.toml >/srv/b/settings/server.toml
install -d -o wattle-server -g wattle-server -m 700 /var/lib/wattle-server
chown wattle-server: /srv/b/data
sed 's|^ExecStart=|NetworkNamespacePath=/run/netns/cork\
BindPaths=/srv/b/settings:/etc/wattle /srv/b/data:/var/lib/wattle-server\
&|' /etc/systemd/system/wattle-server.service >/etc/systemd/system/wattle-server-b.service
systemctl daemon-reload
# A step on the second host, whose unit has another name here.
step_on_b() {
    step=$((step + 1))
    echo "$guide, step $step, on b: $(head -n 1 /run/guide/$step)"
    ip netns exec cork unshare --mount sh -eu -c '
        mount --bind /srv/b/settings /etc/wattle
        mount --bind /srv/b/data /var/lib/wattle-server
        systemctl() { command systemctl "$@-b"; }
        . "$1"' b "/run/guide/$step"
}

guide several-coordinators.md
step # the settings of a
step=$((step - 1))
step_on_b # and of b
step # a starts
cd /root
cp /var/lib/wattle-server/ca.pem .
step_on_b # b starts
end_of_guide

url=https://a.example:8443
systemctl start wattle-agent
create_sites
wattle-agent join - </run/dublin
ip netns exec cork wattle-agent --state-dir /var/lib/cork join - </run/cork
wait_for 30 ping -c 1 -W 1 10.20.0.1

# What a changes reaches who follows b, and the other way round, also when one of them is gone.
systemctl kill --signal=KILL wattle-server
systemctl stop wattle-server
follow_b() {
    wattle-agent status | grep "connected to https://b.example:8443" &&
        ip netns exec cork wattle-agent --state-dir /var/lib/cork status | grep "connected to https://b"
}
wait_for 30 follow_b
url=https://b.example:8443
api /sites/cork --request PATCH --data '{"subnets": ["10.20.0.0/24", "10.21.0.0/24"]}' >/dev/null
wait_for 10 eval "ip route show 10.21.0.0/24 | grep wattle0"
ping -c 1 -W 1 10.20.0.1
