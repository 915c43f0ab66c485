# Up means that LANs can talk: what a host and the other programs on it do to them is told on the
# gateway, at the coordinator and of its link within ten seconds, its remedy lets packets through as it
# is typed, and it goes when the cause goes. What is healthy is not told.
install_wattle
install_networks
make_hosts
join_both

wait_for 30 all_well

# A policy for IPv6 is nothing to LANs of IPv4.
ip6tables -P FORWARD DROP
wait_for 10 all_well
ip6tables -P FORWARD ACCEPT

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

# A masquerade without an interface keeps nobody from anybody, and it is told.
iptables -t nat -A POSTROUTING -j MASQUERADE
is_noticed() {
    api /nodes/dublin >/run/node
    jq --exit-status '.lan == "ok" and (.problems | length == 1 and .[0].code == "nat")' /run/node
}
wait_for 10 is_noticed
both_ways || fail "a masquerade keeps the LANs apart"
jq --raw-output '.problems[0].remedy' /run/node >/run/fix
sh -ex /run/fix
nothing_is_told() {
    api /nodes/dublin | jq --exit-status '.problems == []'
}
wait_for 10 nothing_is_told
iptables -t nat -F

iptables -t nat -A PREROUTING -i lan0 -p tcp -j REDIRECT --to-ports 3128
is_told "a proxy for all of TCP" nat typed
iptables -t nat -F

# Docker that starts where nothing is forwarded yet drops what it does not know, also after its own
# restart. The agent would turn forwarding on before Docker looks.
systemctl stop wattle-agent
sysctl -q -w net.ipv4.ip_forward=0
systemctl start docker
systemctl start wattle-agent
is_told "Docker that started before" firewall typed
systemctl restart docker
wait_for 10 all_well
systemctl stop docker.socket docker
nft flush ruleset
wait_for 30 all_well

# doctor judges by what this node should be: its own port, and the families of its LANs.
api /sites/dublin --request PATCH --data '{"endpoint": "198.18.0.1:51830"}' >/dev/null
wait_for 20 all_well
wattle-agent doctor | grep -q "port: listens on UDP port 51830" || fail "$(wattle-agent doctor)"
use_ipv6
sysctl -q -w net.ipv4.ip_forward=0
wait_for 30 all_well
sysctl -q -w net.ipv6.conf.all.forwarding=0
wait_for 10 all_well

# A gateway that stops is as it said last, until it is silent.
systemctl stop cork-agent
api /nodes/cork | jq --exit-status '.lan == "ok"' || fail "not heard of for a moment only"
