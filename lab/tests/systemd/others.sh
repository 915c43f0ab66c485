# What else keeps gateways or their LANs apart is told, its remedy helps, and it goes when the cause
# goes: addresses of two kinds, a second agent, a LAN that comes by another interface, a preshared key
# that one end alone has, a clock that is wrong.
install_wattle
install_networks
make_hosts
systemctl enable --quiet --now wattle-server.service wattle-agent.service
wait_for 60 api /readyz
create_sites

# Cork is at no address that Dublin knows, and has no IPv6; Dublin is known by IPv6 alone.
ip address add fd00:18::1/64 dev wan0
ip -n cork route add default via 198.18.0.1
api /sites/cork --request PATCH --data '{"endpoint": null}' >/dev/null
api /sites/dublin --request PATCH --data '{"endpoint": "[fd00:18::1]:51820"}' >/dev/null
wattle-agent join - </run/dublin
ip netns exec cork wattle-agent --state-dir /var/lib/cork join - </run/cork

# Cork's one problem has this code.
cork_has() {
    api /nodes/cork >/run/node
    jq --exit-status --arg code "$1" '.problems | length == 1 and .[0].code == $code' /run/node
}
cork_is_well() {
    api /nodes/cork | jq --exit-status '.problems == []'
}
start=$(date +%s)
wait_for 10 cork_has address_family
echo "told after $(($(date +%s) - start)) s: no address family in common"
api /links/dublin/cork | jq --exit-status '.lan == "degraded"' || fail "$(api /links/dublin/cork)"
! both_ways >/dev/null 2>&1 || fail "there is a way"
ip netns exec cork wattle-agent --state-dir /var/lib/cork status --json >/run/status
jq --exit-status '.problems[0].remedy | startswith("give the site of dublin an endpoint of IPv4")' \
    /run/status || fail "$(cat /run/status)"
api /sites/dublin --request PATCH --data '{"endpoint": "198.18.0.1:51820"}' >/dev/null
wait_for 30 all_well

# A second agent leaves the interface of the first alone, and says so.
api /sites --data '{"name": "lyon", "subnets": ["10.30.0.0/24"]}' |
    jq --raw-output .join_token.join_string >/run/lyon
systemd-run --quiet --unit=second-agent wattle-agent --state-dir /var/lib/second run
wattle-agent --state-dir /var/lib/second join - </run/lyon
start=$(date +%s)
second_is_told() {
    api /nodes/lyon | jq --exit-status '.problems | length == 1 and .[0].code == "not_applied" and
        (.[0].words | startswith("another agent (process "))'
}
wait_for 10 second_is_told
echo "told after $(($(date +%s) - start)) s: two agents on one interface"
wattle-agent --state-dir /var/lib/second status --json |
    jq --exit-status '.problems[0].words | startswith("another agent (process ")'
both_ways || fail "the second agent cuts the tunnel of the first"
systemctl stop second-agent
api /sites/lyon --request DELETE >/dev/null
wait_for 30 all_well

# Hosts answer by another interface than the one that leads to them, and rp_filter is strict there.
ip link add lan1 type veth peer name eth1 netns near
ip address add 172.16.9.1/30 dev lan1
ip link set lan1 up
ip -n near address add 172.16.9.2/30 dev eth1
ip -n near link set eth1 up
sysctl -q -w net.ipv4.conf.lan1.rp_filter=1
# As a router between the two would, it asks for the gateway's address with its own.
ip netns exec near sysctl -q -w net.ipv4.conf.eth1.arp_announce=2
ip -n near route add 10.20.0.0/24 via 172.16.9.1 src 10.10.0.100
ip netns exec near ping -q -i 0.5 10.20.0.100 >/dev/null 2>&1 &
is_told "a LAN that comes by an interface with a strict rp_filter" route typed
kill $!
ip link del lan1
wait_for 30 all_well

# One end has another preshared key, on the device: the agent puts the right one back.
cork_key=$(wg show wattle0 peers)
wg genpsk >/run/wrong
wg set wattle0 peer "$cork_key" preshared-key /run/wrong
ip link set wattle0 down
wait_for 20 all_well

# The clock of Cork's agent is an hour slow.
install -d /etc/systemd/system/cork-agent.service.d
cat >/etc/systemd/system/cork-agent.service.d/clock.conf <<'END'
[Service]
Environment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1
Environment=FAKETIME=-1h FAKETIME_DONT_FAKE_MONOTONIC=1
END
systemctl daemon-reload
systemctl restart cork-agent
start=$(date +%s)
wait_for 10 cork_has clock
echo "told after $(($(date +%s) - start)) s: a clock that is wrong"
jq --exit-status '.problems[0].words | contains("about 60 minutes behind")' /run/node ||
    fail "$(cat /run/node)"
both_ways || fail "the clock keeps the LANs apart"
rm -r /etc/systemd/system/cork-agent.service.d
systemctl daemon-reload
systemctl restart cork-agent
wait_for 10 cork_is_well
wait_for 30 all_well
