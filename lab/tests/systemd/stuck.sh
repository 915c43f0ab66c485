# An agent that hangs at its start delays the network for the unit's time, and no longer. One that
# fails at once does not delay it, and is started again however often it fails.
stuck() {
    # As packaged but for the time, which is half a minute.
    install -d /etc/systemd/system/wattle-agent.service.d
    printf '[Unit]\nJobRunningTimeoutSec=5\n[Service]\nExecStart=\nExecStart=%s\n' "$1" \
        >/etc/systemd/system/wattle-agent.service.d/stuck.conf
    reboot
}

# Milliseconds from the agent's start to the network's.
head_start() {
    echo $((($(property network-pre.target ActiveEnterTimestampMonotonic) - \
        $(property wattle-agent ConditionTimestampMonotonic)) / 1000))
}

# systemd itself gives up what fails five times in ten seconds.
is_tried_on() {
    [ "$(property wattle-agent NRestarts)" -ge 6 ]
}

case $BOOT in
    1)
        install_wattle
        install_networks
        systemctl enable --quiet wattle-agent
        systemctl add-wants --quiet multi-user.target network-online.target
        stuck '/bin/sleep infinity'
        ;;
    2)
        wait_for 20 systemctl is-active network-online.target
        [ "$(head_start)" -ge 4000 ] || fail "the network came $(head_start) ms after the agent"
        [ "$(property wattle-agent ActiveState)" = activating ] || fail "the agent is given up"
        stuck /bin/false
        ;;
    3)
        wait_for 20 systemctl is-active network-online.target
        wait_for 30 is_tried_on
        ;;
esac
