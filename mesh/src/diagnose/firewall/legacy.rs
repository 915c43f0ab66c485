//! The tables of iptables-legacy, which nft does not list, as nft would print them.
//!
//! The kernel gives a table as it has it in memory: entries of `struct ipt_entry` (`ip6t_entry`)
//! one behind the other, each with its matches and its target (`linux/netfilter/x_tables.h`,
//! `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h`). A jump is the place of
//! an entry. A chain of the kernel begins where `struct ipt_getinfo` says, and ends with its policy.
//! Any other begins with an entry that has its name.

mod bytes;
mod extension;
mod in_use;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use serde_json::{Value, json};

use self::bytes::Bytes;
pub use self::in_use::{hooked, listed};
use crate::host::state::Family;

/// Names of the kernel's chains in iptables and in nft, by the numbers of their hooks.
const HOOKS: [(&str, &str); 5] = [
    ("PREROUTING", "prerouting"),
    ("INPUT", "input"),
    ("FORWARD", "forward"),
    ("OUTPUT", "output"),
    ("POSTROUTING", "postrouting"),
];
/// What comes before the data of a match or a target: its size, name and revision.
const HEADER_LEN: usize = 32;

/// The target of the entry that has a chain's name.
const NAMING: &str = "ERROR";
/// The name that the end of a table has in place of a chain's.
const END: &str = "ERROR";

/// `NF_DROP`, `NF_ACCEPT`, `NF_QUEUE` and `XT_RETURN` as verdicts.
const DROP: i32 = -1;
const ACCEPT: i32 = -2;
const QUEUE: i32 = -4;
const RETURN: i32 = -5;

/// `IPT_INV_VIA_IN` and others in `invflags`, the same for IPv6.
const NOT_IN: u8 = 0x01;
const NOT_OUT: u8 = 0x02;
const NOT_SOURCE: u8 = 0x08;
const NOT_DESTINATION: u8 = 0x10;
const NOT_PROTOCOL: u8 = 0x40;

/// A table of iptables-legacy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LegacyTable {
    Raw,
    Mangle,
    Nat,
    Filter,
    Security,
}

impl LegacyTable {
    const ALL: [Self; 5] = [
        Self::Raw,
        Self::Mangle,
        Self::Nat,
        Self::Filter,
        Self::Security,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Security => "security",
        }
    }

    /// Where a chain of it stands among those of its hook (`linux/netfilter_ipv4.h`).
    fn priority(self, hook: &str) -> i64 {
        match self {
            Self::Raw => -300,
            Self::Mangle => -150,
            Self::Nat if ["prerouting", "output"].contains(&hook) => -100,
            Self::Nat => 100,
            Self::Filter => 0,
            Self::Security => 50,
        }
    }

    fn chain_type(self, hook: &str) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Mangle if hook == "output" => "route",
            Self::Raw | Self::Mangle | Self::Filter | Self::Security => "filter",
        }
    }
}

/// A table as the kernel gives it.
#[derive(Clone, Copy, Debug)]
pub struct LegacyDump<'b> {
    pub family: Family,
    pub table: LegacyTable,
    /// `struct ipt_getinfo`.
    pub info: &'b [u8],
    /// What `struct ipt_get_entries` has behind its head.
    pub entries: &'b [u8],
}

impl<'b> LegacyDump<'b> {
    /// Bytes of `struct ipt_getinfo`.
    pub const INFO_LEN: usize = 84;

    /// How long `entries` are, as `info` says.
    pub fn entries_len(info: &[u8]) -> Option<usize> {
        usize::try_from(Bytes(info).u32(80)?).ok()
    }

    /// Chains and rules as `nft --json list ruleset` would print them, each with `legacy`; nothing
    /// where the bytes are no table.
    pub fn objects(self) -> Option<Vec<Value>> {
        if Self::entries_len(self.info)? != self.entries.len() {
            return None;
        }
        let entries = self.split()?;
        let (end, entries) = entries.split_last()?;
        if end.chain_name()? != END {
            return None;
        }
        let targets = self.jump_targets(entries);
        let mut objects = Vec::new();
        let mut chain = None;
        for entry in entries {
            if let Some((hook, policy)) = self.begun_at(entry.at) {
                let (name, hook) = HOOKS[hook];
                let policy = entries.iter().find(|entry| entry.at == policy)?;
                objects.push(self.base_chain(name, hook, policy.verdict()? == DROP));
                chain = Some(name);
            }
            if let Some(name) = entry.chain_name() {
                objects.push(self.object("chain", json!({"name": name})));
                chain = Some(name);
            } else if self.is_policy(entry.at) {
                chain = None;
            } else {
                let rule = json!({"chain": chain?, "expr": entry.expressions(&targets)?});
                objects.push(self.object("rule", rule));
            }
        }
        Some(objects)
    }

    fn split(&self) -> Option<Vec<Entry<'b>>> {
        let layout = Layout::of(self.family);
        let mut entries = Vec::new();
        let mut at = 0;
        while at < self.entries.len() {
            let rest = Bytes(self.entries.get(at..)?);
            let len = usize::from(rest.u16(layout.len_at)?);
            let target = usize::from(rest.u16(layout.target_at)?);
            let bytes = rest.part(0, len)?;
            if target < layout.len {
                return None;
            }
            entries.push(Entry {
                family: self.family,
                at,
                bytes,
                matches: bytes.part(layout.len, target.checked_sub(layout.len)?)?,
                target: Bytes(bytes.0.get(target..)?),
            });
            at += len;
        }
        Some(entries)
    }

    /// Names of chains by the places of their first rules, where jumps lead.
    fn jump_targets(&self, entries: &[Entry<'b>]) -> BTreeMap<usize, &'b str> {
        let named = |entry: &Entry<'b>| Some((entry.end(), entry.chain_name()?));
        entries.iter().filter_map(named).collect()
    }

    /// The number of the hook whose chain begins there, and where its policy is.
    fn begun_at(&self, at: usize) -> Option<(usize, usize)> {
        let mut hooks = self.hooks();
        hooks.find_map(|(hook, first, policy)| (first == at).then_some((hook, policy)))
    }

    fn is_policy(&self, at: usize) -> bool {
        self.hooks().any(|(_, _, policy)| policy == at)
    }

    /// For each hook of the table the places of its chain's first entry and of its policy.
    fn hooks(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<'b> {
        let info = Bytes(self.info);
        (0..HOOKS.len()).filter_map(move |hook| {
            let is_used = info.u32(32)? & (1 << hook) != 0;
            let place = |at| usize::try_from(info.u32(at)?).ok();
            let (first, policy) = (place(36 + 4 * hook)?, place(56 + 4 * hook)?);
            is_used.then_some((hook, first, policy))
        })
    }

    fn base_chain(&self, name: &str, hook: &str, drops: bool) -> Value {
        let chain = json!({
            "name": name,
            "type": self.table.chain_type(hook),
            "hook": hook,
            "prio": self.table.priority(hook),
            "policy": if drops { "drop" } else { "accept" },
        });
        self.object("chain", chain)
    }

    fn object(&self, kind: &str, mut object: Value) -> Value {
        object["family"] = match self.family {
            Family::V4 => "ip".into(),
            Family::V6 => "ip6".into(),
        };
        object["table"] = self.table.name().into();
        object["legacy"] = true.into();
        json!({ kind: object })
    }
}

/// Where things are in an entry.
struct Layout {
    /// Bytes of an address. The source comes first, then the destination, then the masks of both.
    address_len: usize,
    /// Names of the interfaces in and out, then the masks of both.
    interfaces: usize,
    protocol: usize,
    flags: usize,
    /// `invflags`: which of these must not be.
    inverted: usize,
    target_at: usize,
    len_at: usize,
    /// Where the matches begin.
    len: usize,
}

impl Layout {
    const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self {
                address_len: 4,
                interfaces: 16,
                protocol: 80,
                flags: 82,
                inverted: 83,
                target_at: 88,
                len_at: 90,
                len: 112,
            },
            Family::V6 => Self {
                address_len: 16,
                interfaces: 64,
                protocol: 128,
                flags: 131,
                inverted: 132,
                target_at: 140,
                len_at: 142,
                len: 168,
            },
        }
    }
}

/// A rule, a policy, or the name of a chain.
struct Entry<'b> {
    family: Family,
    /// Its place among the entries.
    at: usize,
    bytes: Bytes<'b>,
    matches: Bytes<'b>,
    target: Bytes<'b>,
}

impl<'b> Entry<'b> {
    fn end(&self) -> usize {
        self.at + self.bytes.0.len()
    }

    fn target_name(&self) -> Option<&'b str> {
        self.target.text(2, 29)
    }

    /// The name of the chain that begins behind it.
    fn chain_name(&self) -> Option<&'b str> {
        (self.target_name()? == NAMING)
            .then(|| self.target.text(HEADER_LEN, 30))
            .flatten()
    }

    /// What is decided; a number that is not negative is a place to go on at.
    fn verdict(&self) -> Option<i32> {
        self.target_name()?
            .is_empty()
            .then(|| self.target.i32(HEADER_LEN))
            .flatten()
    }

    /// What the rule asks and does.
    fn expressions(&self, targets: &BTreeMap<usize, &str>) -> Option<Vec<Value>> {
        let layout = Layout::of(self.family);
        let inverted = self.bytes.u8(layout.inverted)?;
        let not = |flag| inverted & flag != 0;
        let mut all = Vec::new();
        all.extend(self.address("saddr", 0, not(NOT_SOURCE))?);
        all.extend(self.address("daddr", 1, not(NOT_DESTINATION))?);
        all.extend(self.interface("iifname", 0, not(NOT_IN))?);
        all.extend(self.interface("oifname", 1, not(NOT_OUT))?);
        let flags = self.bytes.u8(layout.flags)?;
        let (asks_protocol, goes, asks_other) = match self.family {
            // `-f`: fragments.
            Family::V4 => (true, flags & 2 != 0, flags & 1 != 0),
            // The traffic class, which iptables cannot ask for.
            Family::V6 => (flags & 1 != 0, flags & 4 != 0, flags & 2 != 0),
        };
        let protocol = self.bytes.u16(layout.protocol)?;
        if asks_protocol && protocol != 0 {
            let left = json!({"meta": {"key": "l4proto"}});
            all.push(compare(left, not(NOT_PROTOCOL), protocol.into()));
        }
        if asks_other {
            all.push(extension::unknown("match", "header"));
        }
        let mut at = 0;
        while at < self.matches.0.len() {
            let len = usize::from(self.matches.u16(at)?);
            let asked = self.matches.part(at, len)?;
            let name = asked.text(2, 29)?;
            let data = Bytes(asked.0.get(HEADER_LEN..)?);
            all.extend(extension::read(name, asked.u8(31)?, data, protocol));
            at += len;
        }
        all.extend(self.action(goes, targets)?);
        Some(all)
    }

    /// What the rule does; nothing where it only counts.
    fn action(&self, goes: bool, targets: &BTreeMap<usize, &str>) -> Option<Option<Value>> {
        let name = self.target_name()?;
        if !name.is_empty() {
            return Some(Some(extension::unknown("target", name)));
        }
        Some(Some(match self.verdict()? {
            DROP => json!({"drop": null}),
            ACCEPT => json!({"accept": null}),
            RETURN => json!({"return": null}),
            QUEUE => json!({"queue": null}),
            place => {
                let place = usize::try_from(place).ok()?;
                if place == self.end() {
                    return Some(None);
                }
                let how = if goes { "goto" } else { "jump" };
                json!({ how: {"target": targets.get(&place)?} })
            }
        }))
    }

    /// A question for an address, if there is one: the source is the first, the destination the
    /// second.
    fn address(&self, field: &str, number: usize, not: bool) -> Option<Option<Value>> {
        let len = Layout::of(self.family).address_len;
        let read = |at| -> Option<IpAddr> {
            Some(match self.family {
                Family::V4 => Ipv4Addr::from(self.bytes.array::<4>(at)?).into(),
                Family::V6 => Ipv6Addr::from(self.bytes.array::<16>(at)?).into(),
            })
        };
        let (address, mask) = (read(number * len)?, read((number + 2) * len)?);
        let protocol = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let left = json!({"payload": {"protocol": protocol, "field": field}});
        Some(match IpNet::with_netmask(address, mask) {
            Ok(all) if all.prefix_len() == 0 && !not => None,
            Ok(net) => {
                let right = json!({"prefix": {"addr": net.network(), "len": net.prefix_len()}});
                Some(compare(left, not, right))
            }
            // A mask with holes.
            Err(_) => Some(extension::unknown("match", field)),
        })
    }

    /// A question for an interface, if there is one: that by which packets come is the first.
    fn interface(&self, key: &str, number: usize, not: bool) -> Option<Option<Value>> {
        let first = Layout::of(self.family).interfaces;
        let name = self.bytes.text(first + 16 * number, 16)?;
        let mask: [u8; 16] = self.bytes.array(first + 32 + 16 * number)?;
        let counts = mask.iter().take_while(|byte| **byte == 0xff).count();
        if mask.iter().skip(counts).any(|byte| *byte != 0) {
            return Some(Some(extension::unknown("match", key)));
        }
        let wanted = match name.get(..counts) {
            Some("") if !not => return Some(None),
            Some(start) => format!("{start}*"),
            // The end of the name counts, too.
            None => name.to_owned(),
        };
        let left = json!({"meta": {"key": key}});
        Some(Some(compare(left, not, wanted.into())))
    }
}

/// A question in nft's words.
fn compare(left: Value, not: bool, right: Value) -> Value {
    let op = if not { "!=" } else { "==" };
    json!({"match": {"op": op, "left": left, "right": right}})
}

#[cfg(test)]
mod tests;
