# Up means that LANs can talk: what keeps them apart on a gateway is told there, at the coordinator and
# of its link within ten seconds, its remedy lets packets through as it is typed, and it goes when the
# cause goes.
install_wattle
install_networks
make_hosts
join_both

# How the LANs of Dublin and of its link are, as the coordinator tells it.
lans_are() {
    api /nodes/dublin >/run/node
    api /links/dublin/cork >/run/link
    jq --exit-status --arg lan "$1" '.lan == $lan' /run/node &&
        jq --exit-status --arg lan "$1" '.lan == $lan' /run/link
}

# Nothing is in the way, as packets, the coordinator and the gateway say.
all_well() {
    lans_are ok && both_ways && wattle-agent doctor &&
        wattle-agent verify --count 1 --host "$far_host"
}
far_host=10.20.0.100

# Something is in the way: it has this code, and where it says "typed" its remedy is typed. Otherwise
# the cause goes by itself.
is_told() {
    what=$1 code=$2 mended=$3
    start=$(date +%s)
    wait_for 10 lans_are "${effect:-degraded}"
    told=$(($(date +%s) - start))
    ! both_ways >/dev/null 2>&1 || fail "$what: nothing is in the way"
    jq --exit-status --arg code "$code" '.problems | length == 1 and .[0].code == $code' /run/node ||
        fail "$what: $(jq .problems /run/node)"
    jq --exit-status --arg code "$code" '.lan_problems[0].code == $code' /run/link ||
        fail "$what: $(cat /run/link)"
    wattle-agent status --json | jq '[.problems[] | {code, words, remedy}]' >/run/here
    jq '[.problems[] | {code, words, remedy}]' /run/node | cmp -s - /run/here ||
        fail "$what: the gateway says $(cat /run/here)"
    ! wattle-agent verify --count 1 --json >/run/verify || fail "$what: verify: $(cat /run/verify)"
    wattle-agent doctor >/run/doctor || true
    grep -qE "^(FAULT|notice) *$code:" /run/doctor || fail "$what: doctor: $(cat /run/doctor)"
    if [ "$mended" = typed ]; then
        jq --raw-output '.problems[0].remedy' /run/node | sed 's/^if nothing else needs it: //' >/run/fix
        sh -ex /run/fix >/run/fixing 2>&1 || fail "$what: the remedy fails: $(cat /run/fixing)"
    else
        eval "$mended"
    fi
    wait_for 5 both_ways
    wait_for 10 all_well
    echo "told after $told s: $what"
}

wait_for 30 all_well

sysctl -q -w net.ipv4.conf.lan0.forwarding=0
is_told "one interface that does not forward" forwarding typed

ip route add default dev wan0 table 100
ip rule add from 10.10.0.0/24 lookup 100
is_told "a routing rule that sends the LAN to a provider" route typed
ip rule del from 10.10.0.0/24 lookup 100
ip rule del to 10.20.0.0/24 lookup main

ip rule add iif wattle0 lookup 100
is_told "a routing rule for what comes out of the tunnel" route typed
ip rule del iif wattle0 lookup 100
ip rule del to 10.10.0.0/24 lookup main

nft "add table inet marks
    add chain inet marks pre { type filter hook prerouting priority mangle; }
    add rule inet marks pre iifname lan0 meta mark set 7"
ip rule add fwmark 7 lookup 100
effect=unproven
is_told "a routing rule for marks that the firewall sets" route typed
effect=degraded
ip rule del fwmark 7 lookup 100
nft delete table inet marks
ip rule del to 10.10.0.0/24 lookup main
ip rule del to 10.20.0.0/24 lookup main

ip route add 10.20.0.0/25 dev wan0
is_told "a narrower route over another interface" route typed

ip route add blackhole 10.20.0.100/32
is_told "a route that drops what is for a part of the LAN" route typed

ip -n near link set eth0 down
is_told "a LAN without a carrier" lan_down \
    'ip -n near link set eth0 up; ip -n near route replace default via 10.10.0.1'

ip address del 10.10.0.1/24 dev lan0
is_told "a host that is not in the LAN of its site" no_lan \
    'ip address add 10.10.0.1/24 dev lan0'

iptables -t raw -A PREROUTING -s 10.20.0.0/16 -j DROP
is_told "a rule that drops before there is a route" firewall typed
iptables -t raw -F

iptables -t nat -A POSTROUTING -s 10.10.0.0/24 -j SNAT --to-source 203.0.113.10
is_told "an office router's NAT without an interface" nat typed
iptables -t nat -F

# doctor judges by what this node should be: its own port, and the families of its LANs.
api /sites/dublin --request PATCH --data '{"endpoint": "198.18.0.1:51830"}' >/dev/null
wait_for 20 all_well
wattle-agent doctor | grep -q "port: listens on UDP port 51830" || fail "$(wattle-agent doctor)"
for lan in near:dublin:fd00:10: far:cork:fd00:20:; do
    name=${lan%%:*} net=${lan#*:*:} site=${lan#*:} gateway=
    site=${site%%:*}
    [ "$name" = near ] || gateway="ip netns exec cork"
    $gateway ip address add "$net:1/64" dev lan0 nodad
    ip -n "$name" address add "$net:100/64" dev eth0 nodad
    ip -n "$name" route add default via "$net:1"
    api "/sites/$site" --request PATCH --data "{\"subnets\": [\"$net:/64\"]}" >/dev/null
done
both_ways() {
    ip netns exec near ping -c 1 -W 1 fd00:20::100 && ip netns exec far ping -c 1 -W 1 fd00:10::100
}
far_host=fd00:20::100
sysctl -q -w net.ipv4.ip_forward=0
wait_for 30 all_well
sysctl -q -w net.ipv6.conf.all.forwarding=0
wait_for 10 all_well

# A gateway that stops is as it said last, until it is silent.
systemctl stop cork-agent
api /nodes/cork | jq --exit-status '.lan == "ok"' || fail "not heard of for a moment only"
