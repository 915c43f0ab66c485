# Rules of iptables-legacy, which nft does not list: the packaged agent reads them all the same. What
# they keep apart is told as that of nft is, and nothing of it when no rule is left.
install_wattle
install_networks
make_hosts
join_both
wait_for 30 all_well

# The agent makes none of the tables that it looks for.
tables() {
    [ "$(sort "/proc/net/$1_tables_names" | xargs)" = "$2" ] ||
        fail "tables of $1: $(cat "/proc/net/$1_tables_names")"
}
tables ip ""

# Rules, each a line, that keep the LANs apart, with the code and the words that they are told with.
legacy() {
    what=$1 code=$2 words=$3
    shift 3
    for line; do
        $iptables $line
    done
    is_told "$iptables, $what" "$code" typed
    jq --raw-output '.[0].words' /run/here | grep -q "$words" ||
        fail "$what: $(cat /run/here)"
    $iptables -P FORWARD ACCEPT
    $iptables -F
    $iptables -X
    $iptables -t nat -F
    wait_for "$within" all_well
}
iptables=iptables-legacy
# The kernel tells of no change: the agent looks each five seconds, and tells what is so twice.
within=20
established="-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
legacy "a policy" firewall "iptables-legacy filter FORWARD drops" "$established" \
    "-A FORWARD -i lan0 -o wan+ -j ACCEPT" "-P FORWARD DROP"
tables ip "filter nat"
legacy "a last rule that rejects" firewall "rule 4 .* iptables-legacy filter FORWARD rejects" \
    "-N servers" "-A servers -m comment --comment one -d 10.30.0.0/24 -j ACCEPT" \
    "-A FORWARD -m state --state NEW -i lan0 -o wan0 -j ACCEPT" "-A FORWARD -j servers" \
    "-A FORWARD -p tcp ! --syn -m multiport --dports 25,1000:2000 -j DROP" \
    "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"
legacy "a source address for the LAN" nat "rule 2 .* iptables-legacy nat POSTROUTING replaces" \
    "-t nat -A POSTROUTING -o wan0 -j MASQUERADE" \
    "-t nat -A POSTROUTING -s 10.10.0.0/24 -j SNAT --to-source 203.0.113.10"
legacy "Docker's policy" firewall "(Docker's)" "-N DOCKER-USER" "-A DOCKER-USER -j RETURN" \
    "-A FORWARD -j DOCKER-USER" "-P FORWARD DROP"
tables ip "filter nat"
tables ip6 ""

iptables=ip6tables-legacy
use_ipv6
wait_for 30 all_well
legacy "a chain that drops" firewall "rule 2 .* ip6tables-legacy filter strangers drops" \
    "$established" "-N strangers" "-A strangers -p tcp -d fd00:30::/64 -j RETURN" \
    "-A strangers -j DROP" "-A FORWARD -g strangers"

# Nothing is left of it, and nothing is said.
wattle-agent status --json | jq --exit-status '.problems == []'
api /nodes/dublin | jq --exit-status '.problems == []'
