# A gateway whose kernel has no WireGuard. The device that moves its packets is a unit of its own:
# whatever is done to the agent's unit, and whichever of its limits is reached, no packet is lost.
echo "install wireguard /bin/false" >/etc/modprobe.d/no-wireguard.conf
install_wattle
# Cork's gateway is in another network namespace than systemd, so its agent starts its device
# itself. The folder of the devices' sockets is the same.
install -d /etc/systemd/system/cork-agent.service.d
printf '[Service]\nEnvironment=WATTLE_INTERFACE=wattle1\n' \
    >/etc/systemd/system/cork-agent.service.d/name.conf
install_networks
join_both

ip -details link show wattle0 | grep -q " tun " || fail "no userspace device: $(ip -d link)"
device_unit() {
    systemctl list-units --plain --no-legend 'wattle-device@*.service' | cut -d' ' -f1
}
unit=$(device_unit)
device=$(property "$unit" MainPID)
[ "${device:-0}" != 0 ] || fail "the device is no unit of its own: $(systemd-cgls --no-pager)"
cgroup=$(cut -d: -f3 "/proc/$device/cgroup")
case $cgroup in
*/wattle-device@*) ;;
*) fail "the device is in $cgroup" ;;
esac
# What it may do more than the agent is to make such an interface.
agent_devices=$(property wattle-agent PrivateDevices)
[ "$agent_devices" = yes ] || fail "the agent has devices: $agent_devices"

# Of the whole of what follows nothing may be lost.
ping -i 0.1 -c 900 -W 5 10.20.0.1 >/run/pings 2>&1 &
pings=$!
same_device() {
    [ "$(property "$unit" MainPID)" = "$device" ] || fail "$1: the device is another"
}
# The agent has been ended, in this way, and is back with the device that there was.
comes_back() {
    wait_for 30 is_another wattle-agent "$agent"
    wait_for 30 wattle-agent status
    same_device "$1"
    agent=$(property wattle-agent MainPID)
    echo "comes back: $1"
}
agent=$(property wattle-agent MainPID)

systemctl restart wattle-agent
comes_back restart
systemctl kill --signal=KILL wattle-agent
comes_back "kill -9 of all that is in its unit"
systemctl stop wattle-agent
same_device stop
systemctl start wattle-agent
comes_back "stop, start"

systemctl set-property --runtime wattle-agent MemoryMax=2M
wait_for 30 journalctl --quiet --unit=wattle-agent --grep='OOM killer'
same_device "limit of memory"
systemctl set-property --runtime wattle-agent MemoryMax=1G
comes_back "limit of memory"

systemctl set-property --runtime wattle-agent TasksMax=1
systemctl restart wattle-agent || true
[ "$(property wattle-agent ActiveState)" != active ] || fail "an agent of one task works"
same_device "limit of tasks"
systemctl set-property --runtime wattle-agent TasksMax=4000
comes_back "limit of tasks"

install -d /etc/systemd/system/wattle-agent.service.d
printf '[Service]\nWatchdogSec=6\n' >/etc/systemd/system/wattle-agent.service.d/soon.conf
systemctl daemon-reload
systemctl restart wattle-agent
comes_back "restart, once more"
kill -STOP "$agent"
comes_back watchdog
journalctl --quiet --unit=wattle-agent --grep='Watchdog timeout' >/dev/null ||
    fail "it came back, but not by the watchdog"

wait $pings || fail "pings: $(cat /run/pings)"
grep -q " 0% packet loss" /run/pings || fail "packets were lost: $(tail -3 /run/pings)"

# After an upgrade the agent tells that the device is still the program of before, and its remedy
# brings the new one.
cp --remove-destination /opt/wattle/programs/wattle-agent /usr/bin/wattle-agent
# This is for the next device.
echo 'no_offload = ["send"]' >>/etc/wattle/agent.toml
systemctl restart wattle-agent
is_old() {
    wattle-agent status --json | jq --exit-status --raw-output \
        '.problems[] | select(.code == "old_device").remedy' >/run/fix
}
wait_for 20 is_old
sh -ex /run/fix
is_new_device() {
    [ "$(property "$(device_unit)" MainPID)" != "$device" ] && ping -c 1 -W 1 10.20.0.1
}
wait_for 30 is_new_device
! is_old || fail "the new device counts as old"
without=$(tr '\0' ' ' <"/proc/$(property "$(device_unit)" MainPID)/cmdline")
[ "${without%--no-offload=send *}" != "$without" ] || fail "it was started as $without"
wattle-agent doctor | grep 'as `no_offload` says: send' || fail "$(wattle-agent doctor)"

# Where its start fails, the agent says why. It tries again.
systemctl stop wattle-device.socket
pkill -u wattle --full 'wattle-agent device'
wait_for 20 eval "wattle-agent status --json | grep 'start wattle-device.socket'"
systemctl start wattle-device.socket
wait_for 30 ping -c 1 -W 1 10.20.0.1

systemctl stop wattle-agent
wattle-agent down
! ip link show wattle0 || fail "the interface is there"
[ -z "$(device_unit)" ] || fail "the device is there: $(device_unit)"
