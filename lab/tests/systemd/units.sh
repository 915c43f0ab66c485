# Both units start, say when they are ready, come back when they hang, and stop soon.
install_wattle
install_networks
join_both

# As packaged but for the time, which is minutes. The agent's loop passes at least every five seconds.
for unit in wattle-agent wattle-server; do
    install -d /etc/systemd/system/$unit.service.d
    printf '[Service]\nWatchdogSec=12\n' >/etc/systemd/system/$unit.service.d/soon.conf
done
systemctl daemon-reload
for unit in wattle-agent wattle-server; do
    systemctl restart $unit
    [ "$(property $unit ActiveState)" = active ] || fail "$unit is not ready when its start ends"
done
agent=$(property wattle-agent MainPID) server=$(property wattle-server MainPID)
kill -STOP "$agent" "$server"
wait_for 30 is_another wattle-agent "$agent"
wait_for 30 is_another wattle-server "$server"
for unit in wattle-agent wattle-server; do
    journalctl --quiet --unit=$unit --grep='Watchdog timeout' >/dev/null ||
        fail "$unit came back, but not by the watchdog"
done
wait_for 30 api /readyz
ping -c 1 -W 2 10.20.0.1 || fail "the tunnel is gone"

# A private Postgres ends with its coordinator, in good order, and is there again.
begin=$(date +%s)
systemctl stop wattle-server
took=$(($(date +%s) - begin))
[ $took -le 5 ] || fail "stopping the coordinator took $took s"
result=$(property wattle-server Result)
[ "$result" = success ] || fail "the coordinator ended with $result"
! pgrep -u wattle-server || fail "the coordinator left a process"
systemctl start wattle-server
[ "$(api /sites | jq '.items | length')" = 2 ] || fail "the sites are gone"

# Tunnels need no agent.
systemctl stop wattle-agent
ping -c 1 -W 2 10.20.0.1 || fail "the tunnel went with the agent"
