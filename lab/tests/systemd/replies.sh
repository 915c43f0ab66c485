# A LAN whose hosts send their answers to another router is told by the packets that come and those that
# do not, and so is an endpoint that nobody sees. One host that does not answer is only noticed.
install_wattle
install_networks
make_hosts
join_both

# The one problem of Dublin has this code.
is_told() {
    api /nodes/dublin >/run/node
    jq --exit-status --arg code "$1" '.problems | length == 1 and .[0].code == $code' /run/node
}

all_well() {
    api /nodes/dublin | jq --exit-status '.problems == [] and .lan == "ok"' && both_ways
}

# Some hosts of the LAN are asked again and again from the other one.
asked() {
    for host in $1; do
        ip netns exec far ping -q -i 0.5 "10.10.0.$host" >/dev/null 2>&1 &
        echo $! >>/run/askers
    done
}

for host in 101 102 103; do
    ip -n near address add "10.10.0.$host/24" dev eth0
done
wait_for 30 all_well

# What they answer goes elsewhere: here, nowhere.
ip -n near route del default
asked 101
noticed() {
    wattle-agent doctor >/run/doctor
    grep -q "^notice  return_route: .*10.10.0.101" /run/doctor
}
wait_for 20 noticed
api /nodes/dublin | jq --exit-status '.problems == []' || fail "one host alone is no problem"

start=$(date +%s)
asked "102 103"
# Nobody has the address: it is no host that does not answer.
asked 199
wait_for 15 is_told return_route
echo "told after $(($(date +%s) - start)) s: hosts that answer to another router"
jq --exit-status '.lan == "degraded" and .problems[0].subject == "10.10.0.0/24"' /run/node
jq --raw-output '.problems[0].words' /run/node | grep -q "10.10.0.101, 10.10.0.102, 10.10.0.103)" ||
    fail "$(cat /run/node)"
wattle-agent verify --count 1 >/run/verify && fail "verify: $(cat /run/verify)"
# The remedy is for their router; here it is each host's own.
jq --raw-output '.problems[0].remedy' /run/node | sed 's/^on the router of [^ ]*: //' >/run/fix
ip netns exec near sh -ex /run/fix
wait_for 5 both_ways
wait_for 15 all_well
xargs kill </run/askers

# An endpoint at which nobody sees the gateway.
start=$(date +%s)
api /sites/dublin --request PATCH --data '{"endpoint": "198.18.0.77:51820"}' >/dev/null
wait_for 15 is_told endpoint
echo "told after $(($(date +%s) - start)) s: an endpoint that leads elsewhere"
jq --raw-output '.problems[0].remedy' /run/node | sed 's/.* with //' >/run/right
api /sites/dublin --request PATCH --data "$(cat /run/right)" >/dev/null
wait_for 15 all_well
api /sites/dublin | jq --exit-status '.endpoint == "198.18.0.1:51820"'
