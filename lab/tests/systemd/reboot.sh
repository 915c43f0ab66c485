# After a reboot, with the coordinator away, the tunnels are there before the network is.
if [ "$BOOT" = 1 ]; then
    install_wattle
    install_networks
    # An address that the network brings.
    echo 'metrics = "10.10.0.1:9586"' >/etc/wattle/agent.toml
    join_both
    systemctl disable --quiet wattle-server
    # Debian's nftables.service begins with `flush ruleset`.
    systemctl enable --quiet nftables
    # Sees what is there when the network may begin, and lets it.
    cat >/etc/systemd/system/witness.service <<'END'
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=systemd-networkd.service network.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'ip address; ip route show dev wattle0; wg show wattle0 allowed-ips; \
    nft list tables; echo online: $(systemctl is-active network-online.target)'
StandardOutput=truncate:/var/lib/witness
[Install]
WantedBy=multi-user.target
END
    # As cloud-init is ordered on Debian's images: what starts by default waits for a network.
    cat >/etc/systemd/system/cloud.service <<'END'
[Unit]
DefaultDependencies=no
Wants=network-online.target
After=systemd-networkd.service network-pre.target
Before=sysinit.target network-online.target
[Service]
Type=oneshot
ExecStart=/bin/true
[Install]
WantedBy=sysinit.target
END
    systemctl enable --quiet witness cloud
    reboot
fi

systemctl is-system-running --wait >/dev/null || systemctl --failed --no-legend
! journalctl --quiet --boot --grep='ordering cycle' || fail "the units go in a circle"
[ "$(systemctl is-active network-online.target)" = active ] || fail "the network is not online"
cat /var/lib/witness
grep --quiet '^online: inactive' /var/lib/witness || fail "the witness came too late"
! grep --quiet 198.18.0.1 /var/lib/witness || fail "the witness came too late"
has() {
    grep --quiet "$1" /var/lib/witness || fail "before the network, there is no $2"
}
has 'inet .* scope global wattle0' "address of the interface"
has '^10.20.0.0/24' "route to the other site"
has '=.*10.20.0.0/24' "peer"
has '^table inet wattle' "table of rules"
[ "$(systemctl is-active wattle-server)" = inactive ] || fail "the coordinator is there"
wait_for 10 ping -c 1 -W 1 10.20.0.1
# The LAN's address came after the tunnel. The gateway's own packets take it as their source from the
# agent's next look on.
wait_for 15 sh -c "ip route show dev wattle0 | grep '^10.20.0.0/24 .*src 10.10.0.1'"
wait_for 10 curl --silent --show-error --fail --output /dev/null http://10.10.0.1:9586/metrics
