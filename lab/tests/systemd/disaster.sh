# docs/disaster.md, typed as it stands.
url=https://coordinator.example:8443
echo "198.18.0.1 coordinator.example" >>/etc/hosts
install_wattle
install_networks
join_both
cd /root
TOKEN=$(cat /var/lib/wattle-server/api-token)
export CURL_CA_BUNDLE=/var/lib/wattle-server/ca.crt

guide disaster.md
step # an empty database
ping -c 1 -W 1 10.20.0.1
step # a token, and the sites
step # a gateway
wait_for 30 follows
cork="ip netns exec cork wattle-agent --state-dir /var/lib/cork"
site='{"name": "cork", "endpoint": "198.18.0.2:51820", "subnets": ["10.20.0.0/24"]}'
curl -sf -H "Authorization: Bearer $TOKEN" $url/sites -d "$site" |
    jq -r .join_token.join_string >/run/cork
systemctl stop cork-agent
$cork down
$cork join --replace - </run/cork
systemctl start cork-agent
wait_for 30 ping -c 1 -W 1 10.20.0.1

lose_the_authority() {
    rm /var/lib/wattle-server/ca.pem
    # Nobody knows of it until the next start.
    systemctl restart wattle-server || true
    step # a new authority
    wait_for 30 wattle-server healthcheck
    step # a join string with its pin
    step # the gateway
    wait_for 30 follows
}
without_loss "a lost authority" lose_the_authority
curl -sf -H "Authorization: Bearer $TOKEN" -d '{}' $url/sites/cork/join-tokens |
    jq -r .join_string | $cork join -
wait_for 30 eval "$cork status | grep 'connected to'"

step # the old machine is revoked
systemctl stop wattle-agent
wattle-agent down
mv /var/lib/wattle /var/lib/wattle.old
install -d -o wattle -g wattle -m 700 /var/lib/wattle
systemctl start wattle-agent
step # the new machine
wait_for 30 ping -c 1 -W 1 10.20.0.1
curl -sf -X DELETE -H "Authorization: Bearer $TOKEN" $url/nodes/dublin >/dev/null
curl -sf -H "Authorization: Bearer $TOKEN" -d '{}' $url/sites/dublin/join-tokens |
    jq -r .join_string >dublin.join
step # a machine that was one
# The second that goes in a day is more than half of the peers.
wait_for 30 eval "$cork status | grep confirm"
$cork confirm
wait_for 30 ping -c 1 -W 1 10.20.0.1
end_of_guide
