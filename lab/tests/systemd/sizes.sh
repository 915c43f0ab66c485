# A path that is smaller than the tunnel needs, and says nothing of it: links are up, and TCP stalls.
# Its gateway tells it within ten seconds, the remedy lets TCP through as it is typed, and it goes
# when the cause goes.
install_wattle
install_networks
make_hosts
join_both

# Hosts of both LANs serve 300 kB.
head --bytes 300000 /dev/zero >/run/large
for host in near far; do
    ip netns exec "$host" python3 -m http.server --directory /run 8001 >/dev/null 2>&1 &
done
fetch() {
    ip netns exec "$1" curl -sS --max-time 4 -o /run/fetched "http://$2:8001/large" &&
        [ "$(stat --format %s /run/fetched)" = 300000 ]
}
large_get_through() {
    fetch far 10.10.0.100 && fetch near 10.20.0.100
}
gateway_says() {
    wattle-agent status --json | jq --exit-status '[.problems[].code] == '"$1"
}

wait_for 30 lans_are ok
wait_for 10 large_get_through
# The first large probe has been answered.
wait_for 10 sh -c 'wattle-agent doctor | grep -q "Packets of 1420 bytes get to 1 of 1 peers"'

# What Cork gets of more than 1,400 bytes is lost on the way.
path_is_small() {
    ip netns exec cork nft "add table inet path
        add chain inet path in { type filter hook prerouting priority -450; }
        add rule inet path in iifname wan0 meta length > 1400 drop"
}
path_is_small
wait_for 10 lans_are degraded
gateway_says '["large_packets"]' || fail "status: $(wattle-agent status)"
jq --exit-status '.problems | length == 1 and .[0].code == "large_packets" and
    .[0].subject == "cork" and (.[0].words | contains("more than 1328 bytes"))' /run/node ||
    fail "$(jq .problems /run/node)"
jq --exit-status '.state == "up" and .lan_problems[0].code == "large_packets"' /run/link ||
    fail "$(cat /run/link)"
! wattle-agent doctor >/run/doctor || fail "doctor: $(cat /run/doctor)"
grep -q "^FAULT *large_packets:" /run/doctor || fail "doctor: $(cat /run/doctor)"
both_ways >/dev/null || fail "small packets are lost"
! fetch far 10.10.0.100 2>/dev/null || fail "nothing is lost"

jq --raw-output '.problems[0].remedy' /run/node >/run/fix
sh -ex /run/fix || fail "the remedy fails: $(cat /run/fix)"
large_get_through || fail "the remedy does not help: $(cat /run/fix)"
wait_for 10 lans_are ok
gateway_says '[]' || fail "status: $(wattle-agent status)"
wattle-agent plan | grep -q "nothing to do" || fail "plan: $(wattle-agent plan)"

# The agent leaves it, also when it replaces the route. The kernel itself takes away the route of an
# address that goes.
ip address del 10.10.0.1/24 dev lan0
wait_for 10 sh -c 'ip route show 10.20.0.0/24 | grep -q "dev wattle0 proto 87"'
ip route change 10.20.0.0/24 dev wattle0 proto 87 mtu 1328
ip address add 10.10.0.1/24 dev lan0
wait_for 10 sh -c 'ip route show 10.20.0.0/24 | grep -q "src 10.10.0.1.*mtu 1328"'
ip -n near route replace default via 10.10.0.1
large_get_through || fail "$(ip route show 10.20.0.0/24)"

# It is told again when somebody takes it away, and goes when the path is whole again.
ip route change 10.20.0.0/24 dev wattle0 proto 87 src 10.10.0.1
wait_for 10 lans_are degraded
ip netns exec cork nft delete table inet path
wait_for 10 lans_are ok
gateway_says '[]' || fail "status: $(wattle-agent status)"
large_get_through || fail "the path is whole, and large packets are lost"
