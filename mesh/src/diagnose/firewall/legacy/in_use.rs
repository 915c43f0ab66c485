//! Which tables of iptables-legacy a host uses. To ask the kernel for another one would make it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::LegacyTable;
use crate::host::state::Family;

/// The priority of `raw` where it comes before fragments are put together.
const EARLY_RAW: i64 = -450;

/// The tables that `/proc/net/ip_tables_names` lists.
pub fn listed(names: &str) -> BTreeSet<LegacyTable> {
    let is_listed = |table: &LegacyTable| names.lines().any(|name| name == table.name());
    LegacyTable::ALL.into_iter().filter(is_listed).collect()
}

/// The tables whose functions `nft list hooks` shows. Nothing where it does not show them: not every
/// kernel tells.
///
/// A listing without any hook is believed where nft's ruleset has none either, which is so until the
/// agent has made its table.
///
/// Most kernels show of `nat` only that somebody translates addresses, which `ruleset`, nft's, may
/// be. Then the table counts as used if nft does not, if others of iptables-legacy are used, or if
/// `has_nat`: its module is loaded.
pub fn hooked(
    family: Family,
    hooks: &str,
    ruleset: &Value,
    has_nat: bool,
) -> Option<BTreeSet<LegacyTable>> {
    let (name, functions, nat) = match family {
        Family::V4 => ("ip", ["ipt_do_table", "iptable_"], "nf_nat_ipv4_"),
        Family::V6 => ("ip6", ["ip6t_do_table", "ip6table_"], "nf_nat_ipv6_"),
    };
    let mut tables = BTreeSet::new();
    let (mut translates, mut is_family, mut is_told) = (false, false, false);
    for line in hooks.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        if first == "family" {
            is_family = second == Some(name);
        }
        let Ok(priority) = first.parse::<i64>() else {
            continue;
        };
        // A kernel without names of functions.
        let function = second?;
        is_told = true;
        if !is_family {
            continue;
        }
        if functions.iter().any(|start| function.starts_with(start)) {
            let is_of = |table: &LegacyTable| {
                ["prerouting", "postrouting"]
                    .iter()
                    .any(|hook| table.priority(hook) == priority)
                    || *table == LegacyTable::Raw && priority == EARLY_RAW
            };
            tables.extend(LegacyTable::ALL.into_iter().filter(is_of));
        }
        translates |= function.starts_with(nat);
    }
    let is_nats = |object: &Value| {
        let chain = &object["chain"];
        chain["type"] == "nat" && (chain["family"] == name || chain["family"] == "inet")
    };
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    if translates && (has_nat || !tables.is_empty() || !objects().any(is_nats)) {
        tables.insert(LegacyTable::Nat);
    }
    let has_hook = objects().any(|object| object["chain"]["hook"].is_string());
    (is_told || !has_hook).then_some(tables)
}
