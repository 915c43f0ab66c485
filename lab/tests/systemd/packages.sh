# The packages, from the first installation to the last trace: installed, joined, reloaded, upgraded,
# downgraded and taken away again.

# What there is of Wattle on this host; some of it is the lab's.
traces() {
    find / -xdev -iname '*wattle*' ! -path '/opt/*' ! -path '/var/log/*' ! -path '/var/lib/dpkg/*' \
        ! -path '/run/*' ! -path '/var/lib/apt/*' ! -path '/etc/systemd/system-preset/*' ! -path /etc/hostname
    find /run -xdev -iname '*wattle*' ! -path '/run/systemd/*' ! -path '/run/log/*'
    getent passwd | grep wattle || true
    systemctl list-unit-files --no-legend 'wattle-*' || true
}

is_upgraded() {
    is_another wattle-agent "$agent" && follows
}

if [ "$BOOT" = 1 ]; then
    traces >/var/lib/before
    # As Debian has it: what is installed is enabled.
    rm /etc/systemd/system-preset/00-wattle.preset
    dpkg --install "$server_deb" "$agent_deb" >/run/install 2>&1 || fail "$(cat /run/install)"
    grep -q "set url in /etc/wattle/server.toml" /run/install || fail "$(cat /run/install)"
    [ "$(property wattle-agent ActiveState)" = active ] || fail "the agent does not wait for a join: $(cat /run/install)"
    [ "$(property wattle-server ActiveState)" = inactive ] || fail "the coordinator has no URL yet"
    wattle-agent config check
    wattle-server config check
    [ "$(stat -c '%a %U %G' /etc/wattle/server.toml)" = "640 root wattle-server" ] ||
        fail "$(stat /etc/wattle/server.toml)"
    for file in usr/share/man/man1/wattle-agent-verify.1.gz \
        usr/share/bash-completion/completions/wattle-agent; do
        dpkg-deb --contents "$agent_deb" | grep "$file" >/dev/null || fail "there is no $file"
    done

    sed -i "s|^#url = .*|url = \"$url\"|" /etc/wattle/server.toml
    install_networks
    join_both
    # Root says nothing of where the data is: it is where the file says.
    token=$(wattle-server token create --name grafana)
    curl -sf --cacert /var/lib/wattle-server/ca.crt --header "Authorization: Bearer $token" $url/version |
        jq --exit-status --arg version "$(wattle-server --version)" '"wattle-server \(.version)" == $version'
    wattle-server healthcheck || fail "the coordinator is not healthy"
    wattle-server token list --json | jq --exit-status '.[1].role == "viewer"'

    # A reload takes over the guard's rules, and does not touch tunnels.
    cp /etc/wattle/agent.toml /run/agent.toml
    reload() {
        echo 'refuse = ["192.168.0.0/16"]' >>/etc/wattle/agent.toml
        echo 'metrics = "127.0.0.1:9586"' | cat - /run/agent.toml >/run/with-metrics
        echo 'refuse = ["192.168.0.0/16"]' >>/run/with-metrics
        cp /run/with-metrics /etc/wattle/agent.toml
        systemctl reload wattle-agent
        wait_for 10 curl -sf http://127.0.0.1:9586/metrics
        echo 'alow = []' >>/etc/wattle/agent.toml
        ! systemctl reload wattle-agent 2>/dev/null || fail "a file that is not valid is taken"
        journalctl --unit=wattle-agent --grep="agent.toml, line $(wc -l </etc/wattle/agent.toml): " \
            >/dev/null || fail "nobody says which line is not valid"
        curl -sf -o /dev/null http://127.0.0.1:9586/metrics || fail "the agent gave up what it had"
    }
    agent=$(property wattle-agent MainPID)
    without_loss "a reload" reload
    [ "$(property wattle-agent MainPID)" = "$agent" ] || fail "a reload restarts the agent"
    cp /run/agent.toml /etc/wattle/agent.toml

    # Up by one version, and down again.
    of_version "$agent_deb" +next /run/agent-next.deb
    of_version "$server_deb" +next /run/server-next.deb
    other_version() {
        dpkg --install --force-downgrade "$@" >/run/install 2>&1 || fail "$(cat /run/install)"
        wait_for 30 is_upgraded
    }
    for change in "an upgrade:/run/server-next.deb:/run/agent-next.deb" \
        "a downgrade:$agent_deb:$server_deb"; do
        files=${change#*:}
        agent=$(property wattle-agent MainPID)
        server=$(property wattle-server MainPID)
        without_loss "${change%%:*}" other_version "${files%:*}" "${files#*:}"
        is_another wattle-server "$server" || fail "the old coordinator runs on"
    done
    systemctl disable --quiet wattle-server
    reboot
fi

# The tunnels come from disk. What they are taken away by, too.
wait_for 30 ping -c 1 -W 1 10.20.0.1
dpkg --remove wattle-agent >/run/remove 2>&1 || fail "$(cat /run/remove)"
grep -q "the tunnels stay up" /run/remove || fail "$(cat /run/remove)"
[ ! -e /usr/bin/wattle-agent ] || fail "the program is there"
ping -c 1 -W 1 10.20.0.1 || fail "removing the package took the tunnels"
systemctl stop cork-agent
dpkg --purge wattle-agent wattle-server >/run/purge 2>&1 || fail "$(cat /run/purge)"
! ip link show wattle0 || fail "the interface is there"
! nft list table inet wattle || fail "the rules are there"
rm -rf /etc/systemd/system/cork-agent.service /var/lib/cork
traces >/run/after
diff /var/lib/before /run/after || fail "a purge leaves this"

# The .rpm: its files and scriptlets, below a root of Debian's files. It was not tried on Red Hat's.
mkdir -p /run/rpm/upper /run/rpm/work /run/rpm/root
mount -t overlay -o lowerdir=/,upperdir=/run/rpm/upper,workdir=/run/rpm/work root /run/rpm/root
# As an installer has it.
mount -t proc proc /run/rpm/root/proc
mount --bind /dev /run/rpm/root/dev
rpm="rpm --root /run/rpm/root"
$rpm --initdb
$rpm --install --nodeps $packages/wattle-agent-*.rpm $packages/wattle-server-*.rpm >/run/install 2>&1 ||
    fail "$(cat /run/install)"
in_root() {
    chroot /run/rpm/root "$@"
}
in_root wattle-agent config check
in_root wattle-server config check
[ "$(in_root stat -c '%a %U' /var/lib/wattle)" = "700 wattle" ] || fail "the state has another owner: $(cat /run/install)"
$rpm --erase wattle-agent wattle-server >/run/remove 2>&1 || fail "$(cat /run/remove)"
[ ! -e /run/rpm/root/usr/bin/wattle-agent ] || fail "the program is there"
