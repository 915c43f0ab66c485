# Commands beside the unit, whose agent runs as a user of its own: as root, as that user, as a member
# of its group, and as somebody else. What root writes, the agent can read.
install_wattle
install_networks
as_wattle="setpriv --reuid=wattle --regid=wattle --init-groups"
as_member="setpriv --reuid=nobody --regid=nogroup --groups=$(getent group wattle | cut -d: -f3)"
as_somebody="setpriv --reuid=nobody --regid=nogroup --clear-groups"

# All files are the agent's, whoever ran the last command.
owned_by_wattle() {
    others=$(find /var/lib/wattle ! -user wattle)
    [ -z "$others" ] || fail "not the agent's: $others"
}

# Root joins before the unit has ever run.
systemctl enable --quiet --now wattle-server
wait_for 60 api /readyz
create_sites
wattle-agent join - </run/dublin
ip netns exec cork wattle-agent --state-dir /var/lib/cork join - </run/cork
systemctl enable --quiet --now wattle-agent
wait_for 30 ping -c 1 -W 1 10.20.0.1
owned_by_wattle

# As each who may: what the agent says, and what it is asked to do. nobody's own rights are of no use.
for who in "" "$as_wattle" "$as_member"; do
    $who wattle-agent status >/run/status || fail "status ($who): $(cat /run/status)"
    grep -q "connected to $url" /run/status || fail "status ($who): $(cat /run/status)"
    $who wattle-agent confirm | grep -q "no removal waits" || fail "confirm ($who)"
    $who wattle-agent plan | grep -q "nothing to do" || fail "plan ($who)"
    $who wattle-agent doctor >/run/doctor || fail "doctor ($who): $(cat /run/doctor)"
done
# Debian lets root alone send pings, others let everybody.
wattle-agent verify --host 10.20.0.1 || fail "verify"
for who in "$as_wattle" "$as_member"; do
    sysctl -q -w net.ipv4.ping_group_range="1 0"
    ! $who wattle-agent verify 2>/run/refused || fail "pings ($who)"
    grep -q "run this as root" /run/refused || fail "verify ($who): $(cat /run/refused)"
    sysctl -q -w net.ipv4.ping_group_range="0 2147483647"
    $who wattle-agent verify --host 10.20.0.1 || fail "verify ($who)"
done
for who in "" "$as_wattle"; do
    key=$(wg show wattle0 public-key)
    $who wattle-agent rotate >/run/rotate || fail "rotate ($who)"
    grep -q "it was $key" /run/rotate || fail "rotate ($who): $(cat /run/rotate)"
    $who wattle-agent rotate --identity >/run/rotate || fail "rotate --identity ($who)"
    $who wattle-agent history >/dev/null || fail "history ($who)"
    $who wattle-agent join - </run/dublin || fail "join, once more ($who)"
    owned_by_wattle
done
owned_by_wattle

# As in a container that runs as no root: the program's own file has the rights, and nft and the
# device get them from it. What the container does not have, the program does without.
mkdir /run/image
mount -t tmpfs tmpfs /run/image
install -m 755 /usr/bin/wattle-agent /run/image/
setcap cap_net_admin,cap_net_raw=p /run/image/wattle-agent
as_image="setpriv --reuid=wattle --regid=wattle --clear-groups --inh-caps=-all --bounding-set=-all,+net_admin"
systemctl stop wattle-agent
nft delete table inet wattle
$as_image /run/image/wattle-agent run 2>/run/image.log &
image=$!
is_woven() {
    nft list table inet wattle >/dev/null && ping -c 1 -W 1 10.20.0.1
}
wait_for 30 is_woven
grep -q "^CapAmb:.*0000000000001000$" /proc/$image/status || fail "rights: $(cat /proc/$image/status)"
kill $image
wait $image || true
systemctl start wattle-agent

# Somebody else is refused, at once and in words.
for command in status plan verify doctor confirm rotate history "join /run/dublin"; do
    ! $as_somebody timeout 10 wattle-agent $command 2>/run/refused || fail "somebody may $command"
    grep -q "run this as root" /run/refused || fail "$command: $(cat /run/refused)"
done

# A join that has something to write: the agent knows another coordinator, too. Root follows no link
# that the agent's user has planted.
systemctl stop wattle-agent
$as_wattle sh -ec 'cd /var/lib/wattle
    jq ".membership.urls += [\"https://198.18.0.9:8443\"]" node.json >node.new
    chmod 600 node.new
    mv node.new node.json
    ln -sf /root/planted node.lock'
! wattle-agent join - </run/dublin || fail "root joined through a link"
[ ! -e /root/planted ] || fail "root followed a link"
rm /var/lib/wattle/node.lock
wattle-agent join - </run/dublin | grep -q "now uses the coordinators" || fail "the string is not taken"
owned_by_wattle
systemctl start wattle-agent
wait_for 30 wattle-agent status

# The agent starts again on what root left, and without it the commands say how old what they read is.
systemctl restart wattle-agent
wait_for 30 ping -c 1 -W 1 10.20.0.1
systemctl stop wattle-agent
wattle-agent status >/run/status || fail "status without an agent: $(cat /run/status)"
grep -q "the agent does not run.* old" /run/status || fail "$(cat /run/status)"
# Root can still look for itself.
wattle-agent plan >/dev/null || fail "plan without an agent"
wattle-agent verify --host 10.20.0.1 || fail "verify without an agent"
! wattle-agent doctor >/run/doctor || fail "doctor without an agent: $(cat /run/doctor)"
grep -q "^FAULT *agent: does not run" /run/doctor || fail "doctor without an agent: $(cat /run/doctor)"
owned_by_wattle
! wattle-agent rotate 2>/run/refused || fail "rotates without an agent"
grep -q "no agent runs here" /run/refused || fail "$(cat /run/refused)"
wattle-agent down || fail "down"
! ip link show wattle0 || fail "the interface is there"
owned_by_wattle
