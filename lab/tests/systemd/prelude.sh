# The first part of each test beside it. A test is the job of a machine with a systemd
# (lab/kernel/root). The machine is the gateway of Dublin and runs the coordinator. A network
# namespace in it is the gateway of Cork.
#
#   this machine                     the namespace cork
#   wan0 198.18.0.1 ───────────────── wan0 198.18.0.2
#   lan0 10.10.0.1                    lan0 10.20.0.1
set -eu
url=https://198.18.0.1:8443
packaged=/opt/wattle/packaging
packages=/opt/wattle/packages
agent_deb=$(ls $packages/wattle-agent_*.deb)
server_deb=$(ls $packages/wattle-server_*.deb)

# The test fails, for this reason.
fail() {
    echo "FAILED: $*"
    journalctl --no-pager --output=short-monotonic --lines=60 --unit='wattle-*' --unit=cork-agent
    exit 1
}

# Looks until a command succeeds, for so many seconds of a quiet host: here, where every program is
# slow to start and other machines run beside, for three times as long.
wait_for() {
    until=$(($(date +%s) + $1 * 3))
    shift
    while ! said=$("$@" 2>&1); do
        [ "$(date +%s)" -lt $until ] || fail "did not come to be: $*; last: $said"
        sleep 0.1
    done
}

# What a property of a unit is.
property() {
    systemctl show --value --property="$2" "$1"
}

# The unit is up, with another process than this one.
is_another() {
    [ "$(property "$1" ActiveState)" = active ] && [ "$(property "$1" MainPID)" != "$2" ]
}

api() {
    path=$1
    shift
    curl --silent --show-error --fail-with-body --max-time 10 \
        --cacert /var/lib/wattle-server/ca.crt \
        --header "Authorization: Bearer $(cat /var/lib/wattle-server/api-token)" "$url$path" "$@"
}

reboot() {
    echo "reboots"
    systemctl reboot
    # The machine goes down while this waits.
    sleep infinity
}

# As if the power failed: what was not written to the disk is lost.
cut_power() {
    echo "loses its power"
    echo b >/proc/sysrq-trigger
    sleep infinity
}

# What the packages install, without their size: programs, users and units.
install_wattle() {
    ln -sf /opt/wattle/programs/wattle-agent /opt/wattle/programs/wattle-server /usr/bin/
    for program in wattle-agent wattle-server; do
        install -D -m 644 "$packaged/$program.sysusers.conf" "/etc/sysusers.d/$program.conf"
    done
    install -m 644 "$packaged"/*.service "$packaged"/*.socket /etc/systemd/system/
    install -d /etc/wattle
    printf 'url = "%s"\nlisten = "0.0.0.0:8443"\nlog_format = "json"\n' $url >/etc/wattle/server.toml
    echo 'log_format = "json"' >/etc/wattle/agent.toml
    systemd-sysusers
    systemctl daemon-reload
}

# A package with another version.
of_version() {
    rm -rf /run/package
    mkdir -p /run/package
    dpkg-deb --raw-extract "$1" /run/package
    sed -i "s/^Version: .*/&$2/" /run/package/DEBIAN/control
    dpkg-deb --root-owner-group -Zgzip -z1 --build /run/package "$3" >/dev/null
}

# The agent of this host follows its coordinator.
follows() {
    wattle-agent status | grep "connected to"
}

# Does something while packets go both ways, a hundred a second; none may be lost.
without_loss() {
    what=$1
    shift
    ping -q -i 0.01 -w 600 10.20.0.1 >/run/pings &
    here=$!
    ip netns exec cork ping -q -i 0.01 -w 600 10.10.0.1 >/run/pings-there &
    there=$!
    wait_for 10 test -e /proc/$here -a -e /proc/$there
    "$@"
    kill -INT $here $there
    wait $here $there || true
    for pings in /run/pings /run/pings-there; do
        grep -q " 0% packet loss" $pings || fail "$what costs packets: $(cat $pings)"
        echo "$what: $(grep transmitted $pings)"
    done
}

# A Postgres that both hosts reach, with an empty database for coordinators.
make_postgres() {
    version=$(ls /usr/lib/postgresql)
    pg_createcluster "$version" main
    echo "listen_addresses = '*'" >>"/etc/postgresql/$version/main/postgresql.conf"
    echo "host wattle wattle 198.18.0.0/24 scram-sha-256" >>"/etc/postgresql/$version/main/pg_hba.conf"
    pg_ctlcluster "$version" main start
    runuser -u postgres -- psql -q -c "CREATE USER wattle PASSWORD 'secret'"
    runuser -u postgres -- createdb --owner=wattle wattle
}

# Takes a guide, whose commands are then typed one step after the other.
guide() {
    guide=$1
    step=0
    rm -rf /run/guide
    mkdir /run/guide
    awk '/^ *```sh$/ { typed = 1; n++; next }
        /^ *```$/ { typed = 0 }
        typed { sub(/^   /, ""); print >"/run/guide/" n }' "/opt/wattle/docs/$guide"
}
# The next step of the guide, as somebody types it in this shell.
step() {
    step=$((step + 1))
    echo "$guide, step $step: $(head -n 1 /run/guide/$step)"
    . /run/guide/$step
}
end_of_guide() {
    [ "$step" = "$(ls /run/guide | wc -l)" ] || fail "nobody typed all of $guide"
}

# The networks of both gateways, and Cork's agent: here at once, and at each boot from now on.
install_networks() {
    cat >/usr/local/sbin/make-networks <<'END'
#!/bin/sh -e
ip netns add cork
ip link add wan0 type veth peer name wan0 netns cork
ip link add lan0 type dummy
ip -n cork link set lo up
ip -n cork address add 198.18.0.2/24 dev wan0
ip -n cork link set wan0 up
ip -n cork link add lan0 type dummy
ip -n cork address add 10.20.0.1/24 dev lan0
ip -n cork link set lan0 up
END
    chmod +x /usr/local/sbin/make-networks
    # Cables and cards are there before anybody sets addresses.
    cat >/etc/systemd/system/networks.service <<'END'
[Unit]
DefaultDependencies=no
After=local-fs.target systemd-udevd.service
Before=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/make-networks
[Install]
WantedBy=sysinit.target
END
    cat >/etc/systemd/system/cork-agent.service <<'END'
[Unit]
After=networks.service
[Service]
StateDirectory=cork
# With a /sys of its own: that of the unit would show the interfaces of Dublin.
ExecStart=/sbin/ip netns exec cork /usr/bin/wattle-agent --state-dir /var/lib/cork run
[Install]
WantedBy=multi-user.target
END
    install -d /etc/systemd/network
    for network in wan0:198.18.0.1/24 lan0:10.10.0.1/24; do
        printf '[Match]\nName=%s\n[Network]\nAddress=%s\nConfigureWithoutCarrier=yes\n' \
            "${network%:*}" "${network#*:}" >"/etc/systemd/network/${network%:*}.network"
    done
    systemctl daemon-reload
    systemctl enable --quiet --now networks.service systemd-networkd.service cork-agent.service
}

# Both sites. Their join strings are in /run.
create_sites() {
    for site in dublin:198.18.0.1:10.10.0.0/24 cork:198.18.0.2:10.20.0.0/24; do
        name=${site%%:*} address=${site#*:} lan=${site##*:}
        site="{\"name\": \"$name\", \"endpoint\": \"${address%:*}:51820\", \"subnets\": [\"$lan\"]}"
        api /sites --data "$site" | jq --raw-output .join_token.join_string >"/run/$name"
        chmod 644 "/run/$name"
    done
}

# Both sites, each with a gateway that has joined and a tunnel that is up. Root joins beside an agent
# that waits for it.
join_both() {
    systemctl enable --quiet --now wattle-server.service wattle-agent.service
    wait_for 60 api /readyz
    create_sites
    wattle-agent join - </run/dublin
    ip netns exec cork wattle-agent --state-dir /var/lib/cork join - </run/cork
    wait_for 30 ping -c 1 -W 1 10.20.0.1
}

# A host in each LAN.
make_hosts() {
    for lan in near:10.10.0 far:10.20.0; do
        name=${lan%%:*} net=${lan##*:} gateway=
        [ "$name" = near ] || gateway="ip netns exec cork"
        ip netns add "$name"
        $gateway ip link del lan0
        $gateway ip link add lan0 type veth peer name eth0
        $gateway ip link set eth0 netns "/run/netns/$name"
        # On this machine systemd-networkd sets it as well, as soon as it sees the interface.
        $gateway ip address replace "$net.1/24" dev lan0
        $gateway ip link set lan0 up
        ip -n "$name" address add "$net.100/24" dev eth0
        ip -n "$name" link set eth0 up
        ip -n "$name" route add default via "$net.1"
        ip netns exec "$name" python3 -m http.server --directory /opt/wattle/packaging 8000 \
            >/dev/null 2>&1 &
    done
}

# Packets of a LAN get to the other, by ping and by TCP, and come from where they come from.
near_to_far() {
    ip netns exec near ping -c 1 -W 1 10.20.0.100 &&
        ip netns exec near curl -s --max-time 2 -o /dev/null http://10.20.0.100:8000/
}
far_to_near() {
    ip netns exec far ping -c 1 -W 1 10.10.0.100 &&
        ip netns exec far curl -s --max-time 2 -o /dev/null http://10.10.0.100:8000/
}
both_ways() {
    near_to_far && far_to_near
}

# A host of the LAN of Cork.
far_host=10.20.0.100

# The LANs have IPv6 from now on, and nothing else is looked at.
use_ipv6() {
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
        ip netns exec near ping -c 1 -W 1 fd00:20::100 &&
            ip netns exec far ping -c 1 -W 1 fd00:10::100
    }
    far_host=fd00:20::100
}

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

# The problems of Dublin are these, by their codes, and so are those of its LAN on its link.
problems_are() {
    are='| map(.code) | sort == ($codes | split(" "))'
    lans_are "${effect:-degraded}" &&
        jq --exit-status --arg codes "$1" ".problems $are" /run/node &&
        jq --exit-status --arg codes "$1" ".lan_problems $are" /run/link ||
        { jq --compact-output .problems /run/node && return 1; }
}

# Something is in the way: the problems have these codes, and where it says "typed" the remedy of the
# first is typed. Otherwise the cause goes by itself.
is_told() {
    what=$1 codes=$2 mended=$3
    code=${codes%% *}
    start=$(date +%s)
    wait_for "${within:-10}" problems_are "$codes"
    told=$(($(date +%s) - start))
    ! both_ways >/dev/null 2>&1 || fail "$what: nothing is in the way"
    wattle-agent status --json | jq '[.problems[] | {code, words, remedy}]' >/run/here
    jq '[.problems[] | {code, words, remedy}]' /run/node | cmp -s - /run/here ||
        fail "$what: the gateway says $(cat /run/here)"
    ! wattle-agent verify --count 1 --json >/run/verify || fail "$what: verify: $(cat /run/verify)"
    wattle-agent doctor >/run/doctor || true
    grep -qE "^(FAULT|notice) *$code:" /run/doctor || fail "$what: doctor: $(cat /run/doctor)"
    if [ "$mended" = typed ]; then
        jq --raw-output --arg code "$code" '.problems[] | select(.code == $code) | .remedy' /run/node |
            sed 's/^if nothing else needs it: //' >/run/fix
        sh -ex /run/fix >/run/fixing 2>&1 || fail "$what: the remedy fails: $(cat /run/fixing)"
    else
        eval "$mended"
    fi
    wait_for "${helps:-5}" both_ways
    wait_for "${within:-10}" lans_are ok
    # It starts programs for some seconds.
    wait_for 30 all_well
    echo "told after $told s: $what"
}
