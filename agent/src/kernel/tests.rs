//! On real devices, routes and tables: each test runs in network and mount namespaces of its own.
//!
//! The devices are the kernel's own where it has WireGuard, else they run in this process.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use wattle_mesh::{
    diagnose::firewall::legacy::LegacyTable,
    health::replies::Flows,
    host::{
        ruleset::Ruleset,
        state::{Family, Interface, Observed, ObservedPeer, ObservedRoute, ObservedRuleset},
        way::{ForeignRoute, Way},
    },
    keys::psk::Psk,
};
use wattle_wire::key::WireguardKey;

use super::*;

const NODE: &str = "018f3c1e-7d2a-7b31-9c55-0242ac120002";
const IN_NAMESPACE: &str = "WATTLE_TEST_IN_NAMESPACE";

/// Runs the test of this name again, in namespaces in which it is root and alone.
fn in_namespace(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(IN_NAMESPACE).is_none() {
        let mut again = Command::new("unshare");
        if !nix::unistd::geteuid().is_root() {
            again.args(["--user", "--map-root-user"]);
        }
        again
            .args(["--net", "--mount"])
            .arg(std::env::current_exe().unwrap());
        again
            .args(["--exact", &format!("kernel::tests::{name}"), "--nocapture"])
            .env(IN_NAMESPACE, "1");
        let output = again.output().expect("unshare of util-linux");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        return;
    }
    command("mount -t tmpfs none /run");
    command("ip link set lo up");
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

fn command(line: &str) {
    let mut words = line.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status();
    assert!(status.is_ok_and(|status| status.success()), "{line}");
}

fn name(text: &str) -> InterfaceName {
    text.parse().unwrap()
}

fn prefixes(text: &str) -> BTreeSet<IpNet> {
    text.split_whitespace()
        .map(|prefix| prefix.parse().unwrap())
        .collect()
}

fn public_key(seed: u8) -> WireguardKey {
    device_state::public_half(&[seed; 32]).unwrap()
}

async fn kind(interface: &InterfaceName) -> DeviceKind {
    device_kind(
        &Tables::open()
            .unwrap()
            .find(interface)
            .await
            .unwrap()
            .unwrap(),
    )
    .unwrap()
}

async fn dump(interface: &InterfaceName) -> Dump {
    wireguard::dump(interface, kind(interface).await)
        .await
        .unwrap()
        .unwrap()
}

async fn try_write(interface: &InterfaceName, what: &Write<'_>) -> anyhow::Result<()> {
    wireguard::write(interface, kind(interface).await, what).await
}

async fn write(interface: &InterfaceName, what: &Write<'_>) {
    try_write(interface, what).await.unwrap();
}

async fn set_peer(interface: &InterfaceName, key: &WireguardKey, change: &PeerUpdate) {
    write(interface, &Write::Peers(vec![(key, Some(change))])).await;
}

async fn until<T: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<(), T>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(last) = look().await {
        assert!(Instant::now() < deadline, "{what}: {last:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A device with the key made of `seed`.
async fn device(interface: &InterfaceName, seed: u8, port: u16) {
    match Tables::open().unwrap().add_wireguard(interface).await {
        Ok(()) => {}
        Err(error) if has_no_wireguard(&error) => device_in_this_process(interface).await,
        Err(error) => panic!("{error}"),
    }
    write(interface, &Write::PrivateKey(&Zeroizing::new([seed; 32]))).await;
    write(interface, &Write::ListenPort(port)).await;
}

/// Lets the agent remember that it made the interface.
async fn own(kernel: &Kernel) {
    let tables = Tables::open().unwrap();
    let device = match kind(&kernel.interface).await {
        DeviceKind::Kernel => OwnedDevice::Kernel,
        DeviceKind::Userspace => OwnedDevice::Userspace { process: None },
    };
    kernel.made(device, kernel.index(&tables).await.unwrap());
}

async fn device_in_this_process(interface: &InterfaceName) {
    let running = interface.clone();
    tokio::spawn(async move {
        crate::device::run(&running, Offload::ALL.into(), None)
            .await
            .unwrap()
    });
    until("the device answers", async || {
        wireguard::dump(interface, DeviceKind::Userspace)
            .await
            .unwrap()
            .map(drop)
            .ok_or("no answer")
    })
    .await;
}

fn peer(endpoint: Option<&str>, keepalive_s: u16, allowed_ips: &str) -> PeerUpdate {
    let endpoint = endpoint.map(|text| text.parse::<SocketAddr>().unwrap());
    PeerUpdate {
        endpoint,
        keepalive_s: Some(keepalive_s),
        allowed_ips: AllowedIps::Replace(prefixes(allowed_ips)),
        psk: None,
    }
}

#[test]
fn a_write_to_a_live_peer_leaves_its_session_its_endpoint_and_its_counters() {
    in_namespace(
        "a_write_to_a_live_peer_leaves_its_session_its_endpoint_and_its_counters",
        async {
            let (here, there) = (name("wattle0"), name("wattle1"));
            device(&here, 1, 51820).await;
            device(&there, 2, 51821).await;
            // Only one end knows where the other is: its endpoint there is learned.
            set_peer(&there, &public_key(1), &peer(None, 0, "10.99.0.1/32")).await;
            set_peer(
                &here,
                &public_key(2),
                &peer(Some("127.0.0.1:51821"), 0, "10.77.0.0/24"),
            )
            .await;
            command("ip addr add 10.99.0.1/32 dev wattle0");
            for up in [
                "ip link set wattle0 up",
                "ip link set wattle1 up",
                "ip route add 10.77.0.0/24 dev wattle0",
            ] {
                command(up);
            }
            let packets = UdpSocket::bind("10.99.0.1:0").unwrap();
            let seen = async || dump(&there).await.peers.remove(&public_key(1)).unwrap();
            // gotatun counts what a packet carries, so a keepalive is nothing to it.
            let carries = async |more_than: u64| {
                until("packets arrive", async || {
                    packets.send_to(&[0; 500], "10.77.0.5:9").unwrap();
                    let peer = seen().await;
                    if peer.is_live() && peer.received_bytes > more_than {
                        Ok(())
                    } else {
                        Err(peer)
                    }
                })
                .await;
            };
            carries(500).await;

            let before = seen().await;
            assert_eq!(before.endpoint, Some("127.0.0.1:51820".parse().unwrap()));
            let psk = Some(Psk::new([7; 32]));
            let keepalive = PeerUpdate {
                keepalive_s: Some(30),
                ..PeerUpdate::default()
            };
            let more = PeerUpdate {
                allowed_ips: AllowedIps::Add(prefixes("10.1.0.0/24")),
                ..PeerUpdate::default()
            };
            let others = PeerUpdate {
                allowed_ips: AllowedIps::Replace(prefixes("10.3.0.0/24")),
                psk: psk.clone(),
                ..PeerUpdate::default()
            };
            for change in [keepalive, more, others] {
                set_peer(&there, &public_key(1), &change).await;
            }
            set_peer(&there, &public_key(3), &PeerUpdate::default()).await;
            write(&there, &Write::Peers(vec![(&public_key(3), None)])).await;

            let after = seen().await;
            let ObservedPeer {
                handshake_age_s,
                received_bytes,
                sent_bytes,
                ..
            } = after;
            assert!(
                received_bytes >= before.received_bytes
                    && sent_bytes >= before.sent_bytes
                    && handshake_age_s.is_some(),
                "{after:?}"
            );
            let written = ObservedPeer {
                keepalive_s: 30,
                allowed_ips: prefixes("10.3.0.0/24"),
                psk,
                ..before
            };
            assert_eq!(
                ObservedPeer {
                    handshake_age_s,
                    received_bytes,
                    sent_bytes,
                    ..written
                },
                after
            );
            set_peer(&there, &public_key(1), &peer(None, 30, "10.99.0.1/32")).await;
            carries(received_bytes).await;
            assert!(seen().await.sent_bytes < 200, "one handshake was enough");
        },
    );
}

#[test]
fn a_prefix_moves_to_the_peer_that_is_given_it_and_stays_there() {
    in_namespace(
        "a_prefix_moves_to_the_peer_that_is_given_it_and_stays_there",
        async {
            let interface = name("wattle0");
            device(&interface, 1, 51820).await;
            set_peer(
                &interface,
                &public_key(2),
                &peer(None, 0, "10.2.0.0/24 10.99.0.2/32"),
            )
            .await;
            set_peer(&interface, &public_key(3), &peer(None, 0, "10.2.0.0/24")).await;
            let touch = PeerUpdate {
                keepalive_s: Some(25),
                ..PeerUpdate::default()
            };
            set_peer(&interface, &public_key(2), &touch).await;

            let held = async |seed| {
                dump(&interface).await.peers[&public_key(seed)]
                    .allowed_ips
                    .clone()
            };
            assert_eq!(
                (held(2).await, held(3).await),
                (prefixes("10.99.0.2/32"), prefixes("10.2.0.0/24"))
            );
            write(&interface, &Write::Peers(vec![(&public_key(3), None)])).await;
            set_peer(&interface, &public_key(2), &peer(None, 0, "10.2.0.0/24")).await;
            assert_eq!(held(2).await, prefixes("10.2.0.0/24"));
        },
    );
}

/// The kernel's own keeps its sessions, in which the next packet tells.
#[test]
fn peers_hear_at_once_from_a_userspace_device_that_moves_to_another_port() {
    in_namespace(
        "peers_hear_at_once_from_a_userspace_device_that_moves_to_another_port",
        async {
            let (here, there) = (name("wattle0"), name("wattle1"));
            for (interface, seed, port) in [(&here, 1, 51820), (&there, 2, 51821)] {
                device_in_this_process(interface).await;
                write(interface, &Write::PrivateKey(&Zeroizing::new([seed; 32]))).await;
                write(interface, &Write::ListenPort(port)).await;
                command(&format!("ip link set {interface} up"));
            }
            set_peer(&there, &public_key(1), &peer(None, 0, "10.99.0.1/32")).await;
            let known = peer(Some("127.0.0.1:51821"), 0, "10.99.0.2/32");
            set_peer(&here, &public_key(2), &known).await;
            // Nothing is sent through the tunnel meanwhile.
            write(&here, &Write::ListenPort(51999)).await;
            until("the peer knows the port", async || {
                let seen = dump(&there).await.peers.remove(&public_key(1)).unwrap();
                if seen.endpoint == Some("127.0.0.1:51999".parse().unwrap()) && seen.is_live() {
                    Ok(())
                } else {
                    Err(seen)
                }
            })
            .await;
        },
    );
}

#[test]
fn a_device_keeps_its_port_when_the_new_one_is_taken() {
    in_namespace("a_device_keeps_its_port_when_the_new_one_is_taken", async {
        let interface = name("wattle0");
        device(&interface, 1, 51820).await;
        // Only then does the kernel open its socket.
        command("ip link set wattle0 up");
        let taken = UdpSocket::bind("0.0.0.0:51999").unwrap();
        let refused = try_write(&interface, &Write::ListenPort(51999))
            .await
            .unwrap_err();
        assert!(
            format!("{refused:#}").contains("another program has the UDP port"),
            "{refused:#}"
        );
        assert_eq!(dump(&interface).await.listen_port, 51820);
        drop(taken);
        set_peer(&interface, &public_key(2), &peer(None, 25, "10.2.0.0/24")).await;
        write(&interface, &Write::ListenPort(51999)).await;
        let Dump {
            listen_port, peers, ..
        } = dump(&interface).await;
        assert_eq!(
            (listen_port, peers.into_keys().collect::<Vec<_>>()),
            (51999, vec![public_key(2)])
        );
    });
}

#[test]
fn h8_what_is_applied_is_observed_and_what_was_made_is_taken_away() {
    in_namespace(
        "h8_what_is_applied_is_observed_and_what_was_made_is_taken_away",
        async {
            let folder = tempfile::tempdir().unwrap();
            let kernel =
                Kernel::new(name("wattle0"), &Store::open(folder.path()).unwrap()).unwrap();
            command("ip link add lan0 type veth peer name lan1");
            command("ip addr add 10.1.0.1/24 dev lan0");
            command("ip link set lan0 up");
            command("sysctl -qw net.ipv4.ip_forward=0");
            assert_eq!(kernel.observe().await.unwrap(), Observed::default());

            device(&name("wattle0"), 1, 51820).await;
            own(&kernel).await;
            let of = |local: &str, remote: &str| Ruleset {
                node: NODE.parse().unwrap(),
                interface: name("wattle0"),
                local: prefixes(local),
                remote: prefixes(remote),
            };
            let first = of("10.1.0.0/24", "10.2.0.0/24 10.3.0.0/24 fd02::/64");
            // A prefix goes, one is widened, one comes.
            let ruleset = of("10.1.0.0/24", "10.2.0.0/23 fd02::/64 fd03::/64");
            let source = Some("10.1.0.1".parse().unwrap());
            let net = |text: &str| text.parse::<IpNet>().unwrap();
            let key = Zeroizing::new([1; 32]);
            for change in [
                Change::SetRuleset(first.clone()),
                Change::UpdateRuleset {
                    from: first.clone(),
                    to: ruleset.clone(),
                },
                Change::CreateInterface,
                Change::SetPrivateKey(public_key(1)),
                Change::SetMtu(1380),
                Change::AddAddress(net("10.99.0.1/16")),
                Change::AddAddress(net("fd99::1/64")),
                Change::AddAddress(net("10.98.0.1/16")),
                Change::RemoveAddress(net("10.98.0.1/16")),
                Change::SetUp,
                Change::EnableForwarding(Family::V4),
                Change::SetRoute(net("10.2.0.0/24"), None),
                Change::SetRoute(net("10.2.0.0/24"), source),
                Change::SetRoute(net("fd02::/64"), None),
                Change::SetRoute(net("10.4.0.0/24"), None),
                Change::RemoveRoute(net("10.4.0.0/24")),
            ] {
                kernel.apply(&change, &key).await.unwrap();
            }
            command("ip route add 10.5.0.0/24 dev wattle0");

            let interface = Interface {
                up: true,
                mtu: 1380,
                addresses: prefixes("10.99.0.1/16 fd99::1/64"),
                routes: [
                    (net("10.2.0.0/24"), route(source, None)),
                    (net("fd02::/64"), route(None, None)),
                ]
                .into(),
                public_key: Some(public_key(1)),
                listen_port: 51820,
                ..Interface::new(kind(&name("wattle0")).await)
            };
            let applied = Observed {
                interface: Some(interface.clone()),
                underlay: BTreeMap::new(),
                forwarding: [Family::V4].into(),
                ruleset: ObservedRuleset::Intact(ruleset.clone()),
                flows: Flows::default(),
            };
            assert_eq!(kernel.observe().await.unwrap(), applied);
            assert_eq!(kernel.host_addresses().await.unwrap(), [net("10.1.0.1/24")]);

            // What somebody sets on a route stays when the agent replaces it.
            command("ip route change 10.2.0.0/24 dev wattle0 proto 87 src 10.1.0.1 mtu 1328");
            command("ip -6 route change fd02::/64 dev wattle0 proto 87 mtu 1328");
            for change in [
                Change::SetRoute(net("10.2.0.0/24"), None),
                Change::SetRoute(net("10.2.0.0/24"), source),
                Change::SetRoute(net("fd02::/64"), None),
            ] {
                kernel.apply(&change, &key).await.unwrap();
                let found = kernel.observe_interface().await.unwrap().unwrap();
                let mtus: Vec<_> = found.routes.values().map(|route| route.mtu).collect();
                assert_eq!(mtus, [Some(1328); 2], "{change}");
            }
            command("ip route change 10.2.0.0/24 dev wattle0 proto 87 src 10.1.0.1");
            command("ip -6 route change fd02::/64 dev wattle0 proto 87");
            assert_eq!(kernel.observe().await.unwrap(), applied);

            command("ip route add 10.6.0.0/24 dev lan0");
            let foreign = kernel
                .apply(&Change::SetRoute(net("10.6.0.0/24"), None), &key)
                .await
                .unwrap_err();
            assert!(
                format!("{foreign:#}")
                    .contains("there is already another route to 10.6.0.0/24 over lan0"),
                "{foreign:#}"
            );
            let stranger = kernel
                .apply(&Change::SetPrivateKey(public_key(2)), &key)
                .await;
            assert!(stranger.is_err());

            command("nft add rule inet wattle forward drop");
            assert_eq!(
                kernel.observe().await.unwrap().ruleset,
                ObservedRuleset::Altered
            );
            kernel
                .apply(&Change::SetRuleset(first.clone()), &key)
                .await
                .unwrap();
            assert_eq!(
                kernel.observe().await.unwrap().ruleset,
                ObservedRuleset::Intact(first)
            );

            let done = kernel.down().await.unwrap();
            let (table, forwarding) = (
                "removed the nftables table inet wattle",
                "set net.ipv4.ip_forward back to 0",
            );
            match interface.device {
                // The kernel's device switches redirects off as it goes up.
                DeviceKind::Kernel => assert_eq!(
                    done,
                    [
                        "removed the interface wattle0",
                        table,
                        forwarding,
                        "set net.ipv4.conf.all.send_redirects back to 1",
                    ]
                ),
                // The device runs in this process, which is no device process.
                DeviceKind::Userspace => assert_eq!(done, [table, forwarding]),
            }
            assert_eq!(kernel.down().await.unwrap(), Vec::<String>::new());
            let left = kernel.observe().await.unwrap();
            assert_eq!(
                (left.interface, left.forwarding, left.ruleset),
                (None, BTreeSet::new(), ObservedRuleset::Absent)
            );
        },
    );
}

#[test]
fn i2_an_interface_of_somebody_else_is_named_and_left() {
    in_namespace(
        "i2_an_interface_of_somebody_else_is_named_and_left",
        async {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let kernel = Kernel::new(name("wattle0"), &store).unwrap();
            for (make, remove, what) in [
                (
                    "ip link add wattle0 type veth peer name other0",
                    "ip link del wattle0",
                    "an interface of kind veth",
                ),
                (
                    "ip tuntap add wattle0 mode tun",
                    "ip tuntap del wattle0 mode tun",
                    "a TUN interface of another program",
                ),
            ] {
                command(make);
                is_left_alone(&kernel, what).await;
                command(remove);
            }
            let remembers_nothing = OwnedInterface {
                device: OwnedDevice::Kernel,
                index: Some(77),
            };
            let was_making_one = OwnedInterface {
                device: OwnedDevice::Userspace { process: None },
                index: None,
            };
            device(&name("wattle0"), 9, 51999).await;
            set_peer(
                &name("wattle0"),
                &public_key(2),
                &peer(None, 0, "10.7.0.0/24"),
            )
            .await;
            let before = dump(&name("wattle0")).await;
            for record in [None, Some(remembers_nothing), Some(was_making_one)] {
                kernel.owned.change(|owned| owned.interface = record);
                let what = match kind(&name("wattle0")).await {
                    DeviceKind::Kernel => "another WireGuard interface",
                    DeviceKind::Userspace => "a TUN interface of another program",
                };
                is_left_alone(&kernel, what).await;
                let after = dump(&name("wattle0")).await;
                assert_eq!(
                    (before.public_key, before.listen_port, before.peers.len()),
                    (after.public_key, after.listen_port, after.peers.len())
                );
            }
        },
    );
}

fn route(source: Option<IpAddr>, mtu: Option<u32>) -> ObservedRoute {
    ObservedRoute { source, mtu }
}

/// An interface of the agent's name that it did not make is not read, not written and not removed.
async fn is_left_alone(kernel: &Kernel, what: &str) {
    assert_eq!(kernel.observe().await.unwrap().interface, None, "{what}");
    let key = Zeroizing::new([1; 32]);
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    for change in [
        Change::CreateInterface,
        Change::SetPrivateKey(public_key(1)),
        Change::SetListenPort(51820),
        Change::SetMtu(1300),
        Change::AddAddress(net("10.99.0.1/16")),
        Change::SetUp,
        Change::SetRoute(net("10.2.0.0/24"), None),
        Change::RemoveRoute(net("10.2.0.0/24")),
        Change::SetPeer(public_key(3), peer(None, 0, "10.3.0.0/24")),
        Change::RemovePeer(public_key(2)),
    ] {
        let refused = kernel.apply(&change, &key).await.unwrap_err();
        assert!(
            format!("{refused:#}").contains(&format!("wattle0 is {what}, which this agent did")),
            "{change}: {refused:#}"
        );
    }
    assert_eq!(kernel.down().await.unwrap(), Vec::<String>::new());
    assert!(
        Tables::open()
            .unwrap()
            .find(&name("wattle0"))
            .await
            .unwrap()
            .is_some()
    );
}

#[test]
fn i2_the_agents_interface_is_known_by_memory_and_by_its_key_and_under_another_name() {
    in_namespace(
        "i2_the_agents_interface_is_known_by_memory_and_by_its_key_and_under_another_name",
        async {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let kernel = || Kernel::new(name("wattle0"), &store).unwrap();
            let machine = Slot::Present.load_or_make(&store).unwrap();
            device(&name("wattle0"), 9, 51820).await;
            assert_eq!(kernel().observe_interface().await.unwrap(), None);
            write(
                &name("wattle0"),
                &Write::PrivateKey(&machine.wireguard_private_key()),
            )
            .await;
            // The record is lost, and the key is this node's.
            assert!(kernel().observe_interface().await.unwrap().is_some());
            command("ip link set wattle0 name lan7");
            assert_eq!(kernel().observe_interface().await.unwrap(), None);
            let refused = kernel()
                .apply(&Change::CreateInterface, &Zeroizing::new([1; 32]))
                .await
                .unwrap_err();
            assert!(
                format!("{refused:#}").contains("is named lan7 now"),
                "{refused:#}"
            );
            if Tables::open()
                .unwrap()
                .add_wireguard(&name("probe0"))
                .await
                .is_ok()
            {
                // The kernel's own goes by its number.
                assert_eq!(
                    kernel().down().await.unwrap(),
                    ["removed the interface lan7"]
                );
            }
        },
    );
}

#[test]
fn i2_a_table_of_somebody_else_is_named_and_left() {
    in_namespace("i2_a_table_of_somebody_else_is_named_and_left", async {
        let folder = tempfile::tempdir().unwrap();
        let kernel = Kernel::new(name("wattle0"), &Store::open(folder.path()).unwrap()).unwrap();
        let ruleset = |node: &str, remote: &str| Ruleset {
            node: node.parse().unwrap(),
            interface: name("wattle0"),
            local: BTreeSet::new(),
            remote: prefixes(remote),
        };
        let key = Zeroizing::new([1; 32]);
        let set = Change::SetRuleset(ruleset(NODE, "10.2.0.0/24"));
        // By hand, and by the agent of another node in this namespace.
        let another = ruleset("018f3c1e-7d2a-7b31-9c55-0242ac120003", "10.3.0.0/24");
        nft("table inet wattle { set remote4 { type ipv4_addr; }; }");
        for made_by_agent in [false, true] {
            if made_by_agent {
                command("nft delete table inet wattle");
                nft(&(another.sets() + &another.chains()));
            }
            let before = nft_listing();
            assert_eq!(
                kernel.observe().await.unwrap().ruleset,
                ObservedRuleset::Foreign
            );
            let refused = kernel.apply(&set, &key).await.unwrap_err();
            assert!(
                format!("{refused:#}").contains("this agent did not make it"),
                "{refused:#}"
            );
            assert_eq!(kernel.down().await.unwrap(), Vec::<String>::new());
            assert_eq!(nft_listing(), before);
        }
        command("nft delete table inet wattle");
        kernel.apply(&set, &key).await.unwrap();
        // Ours, and then somebody else's again.
        command("nft flush ruleset");
        nft("table inet wattle { chain forward { }; }");
        assert_eq!(
            kernel.observe().await.unwrap().ruleset,
            ObservedRuleset::Foreign
        );
        assert_eq!(kernel.down().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn tables_of_iptables_legacy_are_read_and_none_is_made_for_it() {
    in_namespace(
        "tables_of_iptables_legacy_are_read_and_none_is_made_for_it",
        async {
            let names = || std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
            let found = async || {
                let mut ruleset = serde_json::json!({"nftables": []});
                legacy::add_to(&mut ruleset).await.unwrap();
                ruleset["nftables"].as_array().unwrap().clone()
            };
            assert_eq!(found().await, [""; 0]);
            assert_eq!(names(), "");
            // On a kernel that has it, whoever asks for a table makes it.
            let made = legacy::read(Family::V4, LegacyTable::Filter).unwrap();
            if names().is_empty() {
                assert_eq!(made, [""; 0]);
                return;
            }
            assert_eq!(names(), "filter\n");
            let chains = made.iter().map(|object| &object["chain"]["name"]);
            assert!(chains.eq(["INPUT", "FORWARD", "OUTPUT"]), "{made:?}");
            assert_eq!(found().await, made);
        },
    );
}

fn nft(text: &str) {
    let status = Command::new("nft").arg(text).status();
    assert!(status.is_ok_and(|status| status.success()), "{text}");
}

fn nft_listing() -> Vec<u8> {
    let output = Command::new("nft").args(["list", "ruleset"]).output();
    output.unwrap().stdout
}

#[test]
fn a_thousand_peers_are_set_seen_whole_and_taken_away_again() {
    in_namespace(
        "a_thousand_peers_are_set_seen_whole_and_taken_away_again",
        async {
            let folder = tempfile::tempdir().unwrap();
            let interface = name("wattle0");
            let kernel =
                Kernel::new(interface.clone(), &Store::open(folder.path()).unwrap()).unwrap();
            let key = Zeroizing::new([1; 32]);
            device(&interface, 1, 51820).await;
            own(&kernel).await;
            let numbered = |number: u16| {
                let [high, low] = number.to_be_bytes();
                let mut secret = [7; 32];
                // Not the first: not all of its bits count.
                secret[1..3].copy_from_slice(&[high, low]);
                let endpoint = format!("198.18.{high}.{low}:51820");
                let change = peer(
                    Some(&endpoint),
                    25,
                    &format!(
                        "10.{}.{low}.0/24 10.99.{high}.{low}/32 fd99::{number:x}/128",
                        100 + high
                    ),
                );
                (device_state::public_half(&secret).unwrap(), change)
            };

            // A device that runs sends in vain, and counts it.
            let seen = async || {
                let mut peers = kernel.observe().await.unwrap().interface.unwrap().peers;
                peers.values_mut().for_each(|peer| peer.sent_bytes = 0);
                peers
            };
            let mut expected = BTreeMap::new();
            for count in [1, 100, 1000] {
                let changes: Vec<_> = (expected.len() as u16..count)
                    .map(numbered)
                    .map(|(key, change)| Change::SetPeer(key, change))
                    .collect();
                let start = Instant::now();
                kernel
                    .apply_to_peers(&changes.iter().collect::<Vec<_>>())
                    .await
                    .unwrap();
                let set = start.elapsed();
                for change in changes {
                    let Change::SetPeer(key_of_peer, change) = change else {
                        panic!("{change:?}")
                    };
                    let AllowedIps::Replace(allowed_ips) = change.allowed_ips else {
                        panic!("{change:?}")
                    };
                    let peer = ObservedPeer {
                        endpoint: change.endpoint,
                        keepalive_s: 25,
                        allowed_ips,
                        ..ObservedPeer::default()
                    };
                    expected.insert(key_of_peer, peer);
                }
                let start = Instant::now();
                let found = seen().await;
                writeln!(
                    io::stderr(),
                    "{count} peers: set in {set:?}, seen in {:?}",
                    start.elapsed()
                )
                .unwrap();
                assert_eq!(found, expected);
            }
            assert_eq!(expected.len(), 1000);

            // More than fits into one message, either way.
            let many: BTreeSet<IpNet> = (0..300)
                .map(|n| {
                    format!("10.200.{}.{}/30", n / 64, n % 64 * 4)
                        .parse()
                        .unwrap()
                })
                .collect();
            let (key_of_peer, mut change) = numbered(500);
            change.allowed_ips = AllowedIps::Replace(many.clone());
            kernel
                .apply(&Change::SetPeer(key_of_peer, change), &key)
                .await
                .unwrap();
            expected.get_mut(&key_of_peer).unwrap().allowed_ips = many;
            assert_eq!(seen().await, expected);

            let removals: Vec<_> = expected.keys().copied().map(Change::RemovePeer).collect();
            kernel
                .apply_to_peers(&removals.iter().collect::<Vec<_>>())
                .await
                .unwrap();
            assert_eq!(seen().await, BTreeMap::new());
        },
    );
}

#[test]
fn e13_a_route_past_the_tunnel_follows_the_hosts_own_and_goes_with_down() {
    in_namespace(
        "e13_a_route_past_the_tunnel_follows_the_hosts_own_and_goes_with_down",
        async {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let kernel = Kernel::new(name("wattle0"), &store).unwrap();
            for line in [
                "ip link add eth0 type veth peer name eth1",
                "ip addr add 203.0.113.10/24 dev eth0",
                "ip addr add 2001:db8::10/64 dev eth0 nodad",
                "ip link set eth0 up",
                "ip link set eth1 up",
                "ip route add default via 203.0.113.1 metric 100",
                // As in many a data centre: no network has the gateway.
                "ip route add 198.18.0.0/15 via 172.31.1.1 dev eth0 onlink src 203.0.113.10",
                "ip route add unreachable 198.19.0.0/16",
                "ip -6 route add default via fe80::1 dev eth0 metric 7",
            ] {
                command(line);
            }
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            let way = |gateway: &str, source: Option<&str>| Way {
                device: "eth0".to_owned(),
                gateway: Some(ip(gateway)),
                source: source.map(ip),
            };
            let foreign = kernel.foreign_routes().await.unwrap();
            let onlink = way("172.31.1.1", Some("203.0.113.10"));
            for (prefix, metric, expected) in [
                ("0.0.0.0/0", 100, Some(way("203.0.113.1", None))),
                ("198.18.0.0/15", 0, Some(onlink.clone())),
                ("198.19.0.0/16", 0, None),
                ("::/0", 7, Some(way("fe80::1", None))),
            ] {
                let expected = ForeignRoute {
                    prefix: prefix.parse().unwrap(),
                    metric,
                    way: expected,
                };
                assert!(foreign.contains(&expected), "{foreign:?}");
            }

            let (v4, v6) = (ip("198.18.0.2"), ip("2001:db8:1::2"));
            assert_eq!(kernel.is_outside(v4).await.unwrap(), Some(true));
            assert_eq!(kernel.is_outside(ip("198.19.0.2")).await.unwrap(), None);
            let key = Zeroizing::new([1; 32]);
            let set = async |address, way: &Way| {
                let change = Change::SetUnderlayRoute(address, way.clone());
                kernel.apply(&change, &key).await.unwrap();
            };
            let made = async || kernel.observe().await.unwrap().underlay;
            set(v4, &way("203.0.113.1", None)).await;
            set(v4, &onlink).await;
            set(v6, &way("fe80::2", None)).await;
            set(v6, &way("fe80::1", None)).await;
            // One of another agent's.
            command("ip route add 198.18.0.3 via 203.0.113.1 proto 87");
            let both = BTreeMap::from([(v4, onlink), (v6, way("fe80::1", None))]);
            assert_eq!(made().await, both);
            let now = kernel.foreign_routes().await.unwrap();
            assert_eq!(now.len(), foreign.len() + 1, "{now:?}");

            // After a restart they are known, and `down` takes them away.
            let kernel = Kernel::new(name("wattle0"), &store).unwrap();
            assert_eq!(kernel.observe().await.unwrap().underlay, both);
            let remove = Change::RemoveUnderlayRoute(v6);
            kernel.apply(&remove, &key).await.unwrap();
            let gone = kernel.down().await.unwrap();
            assert_eq!(gone, ["removed the route to 198.18.0.2 past the tunnel"]);
            assert_eq!(kernel.down().await.unwrap(), Vec::<String>::new());
            assert_eq!(kernel.foreign_routes().await.unwrap(), now);
        },
    );
}
