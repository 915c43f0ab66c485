# After a reboot, with the coordinator away, the tunnels are there before the network is.
if [ "$BOOT" = 1 ]; then
    install_wattle
    install_networks
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
ExecStart=/bin/sh -c 'ip address; ip route show dev wattle0; wg show wattle0 allowed-ips; nft list tables; \
    echo online: $(systemctl is-active network-online.target)'
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
grep --quiet 'inet .* scope global wattle0' /var/lib/witness || fail "the interface has no address before the network"
grep --quiet '^10.20.0.0/24' /var/lib/witness || fail "there is no route to the other site before the network"
grep --quiet '=.*10.20.0.0/24' /var/lib/witness || fail "the tunnel is not set before the network"
grep --quiet '^table inet wattle' /var/lib/witness || fail "the rules are not there before the network"
[ "$(systemctl is-active wattle-server)" = inactive ] || fail "the coordinator is there"
wait_for 10 ping -c 1 -W 1 10.20.0.1
# The address on the LAN came after the tunnel: packets of the gateway's own have it as theirs from the next look on.
wait_for 15 sh -c "ip route show dev wattle0 | grep '^10.20.0.0/24 .*src 10.10.0.1'"
