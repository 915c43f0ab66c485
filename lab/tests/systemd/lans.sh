# Up means that LANs can talk: routes and routing rules that keep them apart on a gateway are told there,
# at the coordinator and of its link within ten seconds, their remedy lets packets through as it is
# typed, and they go when the cause goes.
install_wattle
install_networks
make_hosts
join_both

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

# TCP to this port alone goes elsewhere; a ping does not.
ip rule add ipproto tcp dport 8000 lookup 100
effect=unproven
is_told "a routing rule for some ports" route typed
effect=degraded
ip rule del ipproto tcp dport 8000 lookup 100
ip rule del to 10.10.0.0/24 lookup main
ip rule del to 10.20.0.0/24 lookup main

ip route add 10.20.0.0/25 dev wan0
is_told "a narrower route over another interface" route typed

# What somebody else routes elsewhere stays so until that goes; the agent's route is back at its next
# look.
helps=10
ip route replace 10.20.0.0/24 dev wan0
is_told "a static route for the very same prefix" "not_applied route" typed
helps=5

ip route add blackhole 10.20.0.100/32
is_told "a route that drops what is for a part of the LAN" route typed
