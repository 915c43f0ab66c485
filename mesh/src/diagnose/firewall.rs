//! What the chains of a host do with a packet, without sending one.
//!
//! The rules are read as `nft --json list ruleset` prints them (libnftables-json(5)). iptables-nft,
//! Docker, ufw and firewalld write into the same tables, so one reading covers them. Tables of
//! iptables-legacy, which nft does not list, have the same form, each object with `legacy`. A packet
//! stands for all of its kind: from one network to another, or to one port. What a rule asks that
//! cannot be known from here makes the result unproven, never fine.

pub mod legacy;
mod matching;
mod obstacle;

use std::{collections::BTreeMap, mem};

use ipnet::IpNet;
use serde_json::Value;

use self::matching::Meant;
pub use self::obstacle::{Deed, Obstacle, RuleNumber};

/// Where chains look at a packet that is forwarded.
const FORWARDING: [Hook; 6] = [
    Hook::Ingress,
    Hook::Prerouting,
    Hook::Redirect,
    Hook::Forward,
    Hook::Postrouting,
    Hook::Egress,
];
/// Chains that may call each other, as many as the kernel allows (`NFT_JUMP_STACK_SIZE`).
const MOST_CALLS: usize = 16;

/// A LAN of this site that the host is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The host's interface in it.
    pub interface: String,
    pub subnet: IpNet,
    /// The host's address in it, with its network.
    pub address: IpNet,
    /// Whether the interface is up and has a carrier.
    pub up: bool,
}

impl Lan {
    /// What of the subnet is on the link.
    pub(crate) fn network(&self) -> IpNet {
        if self.subnet.prefix_len() > self.address.prefix_len() {
            self.subnet
        } else {
            self.address.trunc()
        }
    }
}

/// Packets that begin a connection, all of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'p> {
    /// The interface by which they come; absent for those of this host.
    pub from: Option<&'p str>,
    /// The interface by which they leave; absent for those to this host.
    pub to: Option<&'p str>,
    pub source: IpNet,
    /// Of the same family.
    pub destination: IpNet,
    pub transport: Transport,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Ping,
    /// To any port.
    Tcp,
    TcpPort(u16),
    UdpPort(u16),
}

/// Where chains look at a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Right behind an interface, before all else.
    Ingress,
    /// Before it is known where it goes.
    Prerouting,
    Input,
    Forward,
    Postrouting,
    /// Where destination addresses are replaced, before it is known where a packet goes.
    Redirect,
    /// Where source addresses are replaced.
    Nat,
    /// Right before an interface, after all else.
    Egress,
}

impl Hook {
    /// Type and hook of its chains, in nft's words.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Ingress => ("filter", "ingress"),
            Self::Prerouting => ("filter", "prerouting"),
            Self::Input => ("filter", "input"),
            Self::Forward => ("filter", "forward"),
            Self::Postrouting => ("filter", "postrouting"),
            Self::Redirect => ("nat", "prerouting"),
            Self::Nat => ("nat", "postrouting"),
            Self::Egress => ("filter", "egress"),
        }
    }

    /// The interface that chains at it are of, if they are of one.
    fn device<'p>(self, packet: &Packet<'p>) -> Option<&'p str> {
        match self {
            Self::Ingress => packet.from,
            Self::Egress => packet.to,
            Self::Prerouting
            | Self::Redirect
            | Self::Input
            | Self::Forward
            | Self::Postrouting
            | Self::Nat => None,
        }
    }

    /// The packet as chains see it there.
    fn sees<'p>(self, packet: &Packet<'p>) -> Packet<'p> {
        match self {
            Self::Ingress | Self::Prerouting | Self::Redirect => Packet {
                to: None,
                ..*packet
            },
            Self::Input | Self::Forward | Self::Postrouting | Self::Nat | Self::Egress => *packet,
        }
    }
}

/// What a rule does with what it means.
#[derive(Clone, Debug)]
enum Action<'r> {
    Accept,
    Against(Deed),
    Jump(&'r str),
    Goto(&'r str),
    Return,
    /// Something else decides: a program, an extension that is not known here.
    Unknown,
}

/// How the way through a chain ends.
enum End {
    Accept,
    Against(Obstacle),
    /// The chain has no more rules.
    Open,
    /// As open, but the chain that called is over, too.
    Left,
}

/// A table of a host. Both kinds of iptables may have one of the same family and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TableKey<'r> {
    family: &'r str,
    table: &'r str,
    legacy: bool,
}

impl<'r> TableKey<'r> {
    /// The table of a chain, a rule or a set.
    fn of(object: &'r Value) -> Self {
        Self {
            family: text(object, "family"),
            table: text(object, "table"),
            legacy: object["legacy"] == true,
        }
    }
}

/// All rules of a host.
#[derive(Clone, Debug)]
pub struct Firewall<'r> {
    objects: &'r [Value],
    /// By table and chain, in their order.
    rules: BTreeMap<(TableKey<'r>, &'r str), Vec<&'r Value>>,
}

impl<'r> Firewall<'r> {
    /// The rules as `nft --json list ruleset` prints them.
    pub fn new(ruleset: &'r Value) -> Self {
        let objects = ruleset["nftables"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule in objects.iter().filter_map(|object| object.get("rule")) {
            let chain = (TableKey::of(rule), text(rule, "chain"));
            rules.entry(chain).or_default().push(rule);
        }
        Self { objects, rules }
    }

    /// The objects of a kind: `table`, `chain`, `rule`, `set`.
    pub fn of(&self, kind: &'static str) -> impl Iterator<Item = &'r Value> + use<'r> {
        self.objects
            .iter()
            .filter_map(move |object| object.get(kind))
    }

    /// Whether a rule gives packets marks, which routing rules may go by.
    pub fn sets_marks(&self) -> bool {
        let is_mark = |expression: &Value| {
            let target = expression["xt"]["name"].as_str();
            expression["mangle"]["key"]["meta"]["key"] == "mark"
                || is_extension(expression, "target")
                    && target.is_some_and(|name| ["MARK", "CONNMARK"].contains(&name))
        };
        let mut rules = self.of("rule").filter_map(|rule| rule["expr"].as_array());
        rules.any(|expressions| expressions.iter().any(is_mark))
    }

    /// What stands in the packet's way at a hook: of each chain the first thing, the table `inet
    /// wattle` left out.
    pub fn obstacles(&self, hook: Hook, packet: &Packet<'_>) -> Vec<Obstacle> {
        let (kind, name) = hook.names();
        let device = hook.device(packet);
        let is_of = |chain: &Value, device: &str| {
            let devices = &chain["dev"];
            *devices == device
                || devices
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one == device))
        };
        let mut bases: Vec<_> = self
            .of("chain")
            .filter(|chain| {
                chain["hook"] == name
                    && (chain["type"] == kind || kind == "filter" && chain["type"] == "route")
                    && !(chain["family"] == "inet" && chain["table"] == "wattle")
                    && device.is_none_or(|device| is_of(chain, device))
                    && match chain["family"].as_str() {
                        Some("netdev") => device.is_some(),
                        Some("inet") => true,
                        Some("ip") => packet.source.addr().is_ipv4(),
                        Some("ip6") => packet.source.addr().is_ipv6(),
                        _ => false,
                    }
            })
            .collect();
        bases.sort_by_key(|chain| chain["prio"].as_i64());
        let mut found = Vec::new();
        for base in bases {
            let obstacle = self.judge(base, hook, &hook.sees(packet));
            // The first chain that gives a connection another address is the last.
            let is_last = [Hook::Redirect, Hook::Nat].contains(&hook)
                && obstacle.as_ref().is_some_and(|obstacle| obstacle.certain);
            found.extend(obstacle);
            if is_last {
                break;
            }
        }
        found
    }

    /// What stands between a LAN of this site and one of another, by ping and by TCP, both ways.
    /// Nothing where they are of different families.
    pub fn between<'p>(
        &self,
        lan: &'p Lan,
        tunnel: &'p str,
        far: IpNet,
    ) -> Vec<(Packet<'p>, Obstacle)> {
        if lan.subnet.addr().is_ipv4() != far.addr().is_ipv4() {
            return Vec::new();
        }
        let outward = |transport| Packet {
            from: Some(&lan.interface),
            to: Some(tunnel),
            source: lan.subnet,
            destination: far,
            transport,
        };
        let inward = |transport| Packet {
            from: Some(tunnel),
            to: Some(&lan.interface),
            source: far,
            destination: lan.subnet,
            transport,
        };
        let packets = [Transport::Ping, Transport::Tcp]
            .into_iter()
            .flat_map(|transport| [outward(transport), inward(transport)]);
        let ways = packets.flat_map(|packet| FORWARDING.map(|hook| (hook, packet)));
        let ways = ways.chain([(Hook::Nat, outward(Transport::Tcp))]);
        let found = ways.flat_map(|(hook, packet)| {
            let obstacles = self.obstacles(hook, &packet).into_iter();
            obstacles.map(move |obstacle| (packet, obstacle))
        });
        found.collect()
    }

    fn judge(&self, base: &'r Value, hook: Hook, packet: &Packet<'_>) -> Option<Obstacle> {
        let mut walk = Walk {
            firewall: self,
            packet,
            hook,
            base: text(base, "name"),
            table: TableKey::of(base),
            doubts: Doubts::default(),
        };
        let end = match walk.chain(walk.base, 0) {
            End::Open | End::Left if base["policy"] == "drop" => {
                End::Against(walk.obstacle(walk.base, None, Deed::Drop))
            }
            end @ (End::Accept | End::Against(_) | End::Open | End::Left) => end,
        };
        let Doubts { accepts, against } = walk.doubts;
        match end {
            End::Against(obstacle) => Some(Obstacle {
                certain: !accepts,
                ..obstacle
            }),
            End::Accept | End::Open | End::Left => against.map(|obstacle| Obstacle {
                certain: false,
                ..obstacle
            }),
        }
    }
}

/// What may happen before the end of a way is reached.
#[derive(Default)]
struct Doubts {
    accepts: bool,
    /// The first thing that may be done against the packet.
    against: Option<Obstacle>,
}

/// The way of a packet through a base chain and those that it calls.
struct Walk<'w, 'r> {
    firewall: &'w Firewall<'r>,
    packet: &'w Packet<'w>,
    hook: Hook,
    base: &'r str,
    table: TableKey<'r>,
    doubts: Doubts,
}

impl<'r> Walk<'_, 'r> {
    /// Goes through a chain that the packet has reached.
    fn chain(&mut self, name: &str, calls: usize) -> End {
        if calls > MOST_CALLS {
            return End::Open;
        }
        let rules = self.firewall.rules.get(&(self.table, name));
        for (rule, number) in rules.into_iter().flatten().zip(1..) {
            let handle = rule["handle"].as_u64();
            let here = Some(RuleNumber { handle, number });
            for (meant, action) in self.read(rule) {
                if meant == Meant::No {
                    continue;
                }
                let end = match action {
                    Action::Accept => End::Accept,
                    Action::Against(deed) => End::Against(self.obstacle(name, here, deed)),
                    Action::Jump(target) => match self.call(target, meant, calls) {
                        End::Left => End::Open,
                        end @ (End::Accept | End::Against(_) | End::Open) => end,
                    },
                    Action::Goto(target) => match self.call(target, meant, calls) {
                        End::Open => End::Left,
                        end @ (End::Accept | End::Against(_) | End::Left) => end,
                    },
                    Action::Return if meant == Meant::Yes => return End::Open,
                    // Whether the rest of the chain is reached is as open as it was.
                    Action::Return => continue,
                    Action::Unknown => {
                        let obstacle = self.obstacle(name, here, Deed::Drop);
                        self.doubts.against.get_or_insert(obstacle);
                        continue;
                    }
                };
                match (end, meant) {
                    (End::Open, _) | (End::Left, Meant::Some | Meant::Unknown) => {}
                    (end, Meant::Yes) => return end,
                    (End::Accept, _) => self.doubts.accepts = true,
                    (End::Against(obstacle), Meant::Unknown) => {
                        self.doubts.against.get_or_insert(obstacle);
                    }
                    // Others of the packet's kind get by: an administrator closed one service.
                    (End::Against(_), _) | (End::Left, _) => {}
                }
            }
        }
        End::Open
    }

    /// Goes through a chain that is called for what is meant.
    fn call(&mut self, name: &str, meant: Meant, calls: usize) -> End {
        let before = mem::take(&mut self.doubts);
        let end = self.chain(name, calls + 1);
        let inside = mem::replace(&mut self.doubts, before);
        self.doubts.accepts |= inside.accepts;
        if meant != Meant::Some {
            self.doubts.against = self.doubts.against.take().or(inside.against);
        }
        end
    }

    /// What is met in a chain: a rule, or the policy.
    fn obstacle(&self, chain: &str, rule: Option<RuleNumber>, deed: Deed) -> Obstacle {
        Obstacle {
            family: self.table.family.to_owned(),
            table: self.table.table.to_owned(),
            chain: chain.to_owned(),
            base: self.base.to_owned(),
            hook: self.hook,
            legacy: self.table.legacy,
            rule,
            deed,
            certain: true,
        }
    }

    /// What a rule does, with whom it means: one action, or of a verdict map several.
    fn read(&self, rule: &'r Value) -> Vec<(Meant, Action<'r>)> {
        let mut meant = Meant::Yes;
        let expressions = rule["expr"].as_array().map_or(&[][..], Vec::as_slice);
        let matches = expressions.iter().filter(|expression| {
            expression.get("match").is_some() || is_extension(expression, "match")
        });
        let is_alone = matches
            .filter(|expression| expression["xt"]["name"] != "comment")
            .count()
            == 1;
        for expression in expressions {
            let Some((name, value)) = expression.as_object().and_then(|all| all.iter().next())
            else {
                return vec![(meant.and(Meant::Unknown), Action::Unknown)];
            };
            let action = match name.as_str() {
                "match" => {
                    meant = meant.and(self.compare(value));
                    continue;
                }
                "xt" if is_extension(expression, "match") => {
                    meant = meant.and(match value["name"].as_str() {
                        Some("comment") => Meant::Yes,
                        // Whether there is a way back is asked of the kernel.
                        Some("rpfilter") => Meant::No,
                        // What it asks is not printed. Alone it is the rule for connections that
                        // are there already, or for packets of none.
                        Some("conntrack" | "state") if is_alone => Meant::No,
                        _ => Meant::Unknown,
                    });
                    continue;
                }
                "xt" => match value["name"].as_str() {
                    Some("REJECT" | "TARPIT") => Action::Against(Deed::Reject),
                    Some("DNAT" | "REDIRECT" | "TPROXY") => Action::Against(Deed::Redirect),
                    Some("NETMAP") if self.hook == Hook::Redirect => {
                        Action::Against(Deed::Redirect)
                    }
                    Some("MASQUERADE") => Action::Against(Deed::Masquerade),
                    Some("SNAT" | "NETMAP") => Action::Against(Deed::Rewrite),
                    Some(name) if is_harmless(name) => continue,
                    _ => Action::Unknown,
                },
                "vmap" => {
                    let verdicts = self.elements(&value["data"]);
                    let choose = |pair: &'r Value| {
                        let fits = self.fits(&value["key"], &pair[0]);
                        Some((meant.and(fits), verdict(&pair[1])?))
                    };
                    return verdicts.filter_map(choose).collect();
                }
                "limit" | "quota" | "ct count" | "meter" => {
                    meant = meant.and(Meant::Unknown);
                    continue;
                }
                "masquerade" => Action::Against(Deed::Masquerade),
                "snat" => Action::Against(Deed::Rewrite),
                "dnat" | "redirect" | "tproxy" => Action::Against(Deed::Redirect),
                "queue" => Action::Unknown,
                _ => match verdict(expression) {
                    Some(action) => action,
                    // Counters, logs, marks: nothing that decides.
                    None => continue,
                },
            };
            return vec![(meant, action)];
        }
        Vec::new()
    }
}

/// What an expression decides, if it is a verdict.
fn verdict(expression: &Value) -> Option<Action<'_>> {
    let (name, value) = expression.as_object()?.iter().next()?;
    let target = || value["target"].as_str();
    Some(match name.as_str() {
        "accept" => Action::Accept,
        "drop" => Action::Against(Deed::Drop),
        "reject" => Action::Against(Deed::Reject),
        "return" => Action::Return,
        "jump" => Action::Jump(target()?),
        "goto" => Action::Goto(target()?),
        _ => return None,
    })
}

/// Whether it is an extension of iptables of which nft prints nothing but the name.
fn is_extension(expression: &Value, kind: &str) -> bool {
    expression["xt"]["type"] == kind
}

/// Targets of iptables that leave the packet in its chain, from iptables-extensions(8).
fn is_harmless(target: &str) -> bool {
    const HARMLESS: [&str; 16] = [
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNMARK",
        "CONNSECMARK",
        "CT",
        "DSCP",
        "HL",
        "LOG",
        "MARK",
        "NFLOG",
        "SECMARK",
        "SET",
        "TCPMSS",
        "TRACE",
        "TTL",
    ];
    HARMLESS.contains(&target)
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
