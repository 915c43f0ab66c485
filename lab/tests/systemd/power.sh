# The power fails right after two sites have joined. Nothing is lost: the coordinator has both sites,
# and both gateways know who they are.
if [ "$BOOT" = 1 ]; then
    install_wattle
    install_networks
    systemctl enable --quiet wattle-server wattle-agent
    # What this test has written itself stays.
    sync
    join_both
    echo "nobody saw to this" >/var/lib/unsaved
    cut_power
fi

[ ! -s /var/lib/unsaved ] || fail "the power did not fail: what was not written to the disk is there"
wait_for 60 api /readyz
nodes=$(api /nodes | jq --raw-output '[.items[].site_name] | sort | join(" ")')
[ "$nodes" = "cork dublin" ] || fail "the nodes are $nodes"
wait_for 30 ping -c 1 -W 1 10.20.0.1
wattle-agent status >/run/status || fail "the gateway is no node: $(cat /run/status)"
