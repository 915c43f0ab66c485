# The firewalls that gateways have, each as it comes and in the way of the LANs: doctor names it, and
# what it says to do, typed as it stands, lets packets of both LANs through, both ways.
install_wattle
install_networks
make_hosts
join_both

# What doctor calls a fault, with its remedy, in /run/faults; it fails where there is one.
no_faults() {
    wattle-agent doctor --json >/run/doctor || true
    jq --raw-output '.findings[] | select(.severity == "fault")' /run/doctor >/run/faults
    [ ! -s /run/faults ]
}

# Nothing is wrong: what the agent repairs, it has repaired.
all_well() {
    both_ways && no_faults
}

# A firewall is in the way; who is said to be named; its remedies help. Mending one may uncover
# another.
is_mended() {
    what=$1 named=$2
    ! near_to_far >/dev/null 2>&1 || ! far_to_near >/dev/null 2>&1 ||
        fail "$what: nothing is in the way"
    no_faults || true
    grep -q "$named" /run/faults || fail "$what: not named: $(cat /run/faults)"
    while [ -s /run/faults ]; do
        jq --raw-output 'select(.check | IN("firewall", "nat")) | .fix' /run/faults >/run/fixes
        sh -ex /run/fixes >/run/fixing 2>&1 || fail "$what: the remedy fails: $(cat /run/fixing)"
        cp /run/faults /run/before
        ! no_faults || break
        ! cmp -s /run/faults /run/before || fail "$what: still $(cat /run/faults)"
    done
    both_ways >/run/ways 2>&1 || fail "$what: the remedy does not help: $(nft list ruleset)"
    echo "mended: $what"
}

wait_for 30 all_well

# nftables, as an administrator writes it.
nftables() {
    what=$1 policy=$2 rules=$3
    nft -f - <<END
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy $policy;
        ct state established,related accept
        $rules
    }
}
END
    is_mended "nftables, $what" "inet filter forward"
    nft delete table inet filter
}
nftables "a last rule that rejects" accept "reject with icmpx admin-prohibited"
nftables "a rule that only logs" drop 'iifname "wattle0" log oifname "wattle0" log'
nftables "one way only" drop 'iifname "wattle0" accept'
nftables "a chain for each interface" accept \
    'iifname vmap { "lan0" : drop, "wan0" : accept, "wattle0" : accept }'

# iptables, on nftables.
iptables_nft() {
    what=$1 named=$2
    shift 2
    for line; do
        iptables $line
    done
    is_mended "iptables, $what" "$named"
    iptables -P FORWARD ACCEPT
    iptables -F FORWARD
    iptables -t nat -F
}
established="-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
iptables_nft "a policy" "ip filter FORWARD drops" "$established" "-P FORWARD DROP"
iptables_nft "a last rule that rejects" "rule .* ip filter FORWARD rejects" "$established" \
    "-A FORWARD -i lan0 -o wan0 -j ACCEPT" "-A FORWARD -j REJECT --reject-with icmp-host-prohibited"
iptables_nft "a chain that drops" "ip filter strangers drops" "-N strangers" \
    "-A strangers -j DROP" "-A FORWARD -j strangers"
iptables -F strangers
iptables -X strangers

# An office router's NAT without an interface: other sites drop what comes from foreign addresses.
iptables_nft "a source address for the LAN" "ip nat POSTROUTING replaces" \
    "-t nat -A POSTROUTING -s 10.10.0.0/24 -j SNAT --to-source 203.0.113.10"

# ufw, which denies what is routed.
sed -i 's/^IPV6=.*/IPV6=no/' /etc/default/ufw
ufw --force enable >/dev/null
ufw default deny routed >/dev/null
is_mended "ufw" "(ufw's)"
ufw --force disable >/dev/null
ufw --force reset >/dev/null
nft flush ruleset
wait_for 30 all_well

# Docker's rules, as its daemon leaves them: it sets the policy of FORWARD.
iptables -N DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -A FORWARD -j DOCKER-USER
iptables -P FORWARD DROP
is_mended "Docker" "(Docker's)"
nft flush ruleset
wait_for 30 all_well

# firewalld, whose zone of the tunnel is the default one.
systemctl start firewalld
wait_for 30 firewall-cmd --state
is_mended "firewalld" "(firewalld's)"

# A peer that nothing was sent to gets in at the port.
stranger_gets_in() {
    nft "add table inet seen
        add chain inet seen in { type filter hook input priority 300; }
        add rule inet seen in udp sport 4711 udp dport 51820 counter"
    ip netns exec cork python3 -c 'import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 4711))
s.sendto(bytes(148), ("198.18.0.1", 51820))'
    got=$(nft list table inet seen | grep "counter packets")
    nft delete table inet seen
    case $got in *"packets 1 "*) ;; *) return 1 ;; esac
}
# It is in a zone of the uplink that does not let it in; doctor's remedy is for that zone.
is_let_in() {
    zone=$1
    ! stranger_gets_in || fail "$zone: a stranger gets in"
    wattle-agent doctor --json >/run/doctor || fail "$zone: $(cat /run/doctor)"
    jq --raw-output '.findings[] | select(.check == "firewall" and .fix != null) | .fix' /run/doctor \
        >/run/fix
    grep -q "zone=$zone " /run/fix || fail "$zone: $(cat /run/doctor)"
    sh -ex /run/fix
    stranger_gets_in || fail "$zone: the remedy does not help"
    wait_for 10 all_well
    echo "mended: firewalld, the port in the zone $zone"
}
is_let_in public
firewall-cmd --permanent --zone=dmz --change-interface=wan0
firewall-cmd --reload
is_let_in dmz
systemctl stop firewalld
