# What the packaged units may do, as `systemd-analyze security` adds it up: 10 for whoever may do
# anything. And what they must be able to do for all that.
install_wattle
install_networks
systemctl enable --quiet --now wattle-server wattle-agent
wait_for 60 api /readyz

for most in wattle-agent:20 wattle-server:15 wattle-device@:20; do
    unit=${most%:*}
    # An instance of the device is not there until it is asked for.
    [ "$unit" != wattle-device@ ] || unit=wattle-device@x
    systemd-analyze security --no-pager --threshold="${most#*:}" "$unit.service" >/run/security ||
        fail "$unit may do too much: $(cat /run/security)"
    tail -1 /run/security
    systemctl cat "$unit.service" >/run/unit
    for line in LimitCORE=0 UMask=0077 ProtectProc=invisible NoNewPrivileges=yes; do
        grep -qx "$line" /run/unit || fail "$unit has no $line"
    done
done
for unit in wattle-agent wattle-server; do
    limit=$(property $unit MemoryMax)
    [ "$limit" != infinity ] || fail "$unit has no limit of memory"
    pid=$(property $unit MainPID)
    grep -qE "^Max core file size +0 +0 " "/proc/$pid/limits" || fail "$unit would leave a core file"
    # Of other users' processes it sees nothing.
    user=$(property $unit User)
    in_unit="nsenter --mount --target $pid setpriv --reuid=$user --regid=$user --clear-groups"
    $in_unit test -e /proc/self/status || fail "there is no /proc for $unit"
    ! $in_unit test -e /proc/$$/status || fail "$unit sees this process"
done

# A coordinator knows which addresses its own interfaces have.
warned() {
    api '/sites?dry_run=true' --data '{"name": "dublin", "endpoint": "198.18.0.1:51820",
        "subnets": ["10.10.0.0/24"]}' | grep "which an interface of a coordinator has"
}
wait_for 20 warned
