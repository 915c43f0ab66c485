//! The host's routing rules.

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    IpVersion,
    packet_route::{
        route::RouteHeader,
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};
use wattle_mesh::host::way::{RoutingRule, RoutingRuleKind};

use super::{Tables, into_io};

/// What a kernel says that knows no routing rules of a family.
const NONE: [Errno; 2] = [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP];

impl Tables {
    /// Those that no question to the kernel tells apart, and those that lead to the main table.
    pub(in crate::kernel) async fn routing_rules(&self) -> anyhow::Result<Vec<RoutingRule>> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let is_v4 = matches!(version, IpVersion::V4);
            let messages = self.0.rule().get(version).execute();
            match messages.try_collect::<Vec<_>>().await.map_err(into_io) {
                Ok(messages) => {
                    rules.extend(messages.iter().filter_map(|message| rule(message, is_v4)));
                }
                // A kernel without the family, or without rules, has none.
                Err(error)
                    if NONE.contains(&Errno::from_raw(error.raw_os_error().unwrap_or(0))) => {}
                Err(error) => return Err(error).context("cannot read the routing rules"),
            }
        }
        Ok(rules)
    }
}

fn rule(message: &RuleMessage, is_v4: bool) -> Option<RoutingRule> {
    let header = &message.header;
    let (mut priority, mut from, mut to, mut by) = (0, None, None, None);
    let (mut by_mark, mut by_traffic, mut others) = (false, header.tos != 0, false);
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(is) = attribute {
            priority = *is;
        } else if let RuleAttribute::Source(is) = attribute {
            from = IpNet::new(*is, header.src_len).ok();
        } else if let RuleAttribute::Destination(is) = attribute {
            to = IpNet::new(*is, header.dst_len).ok();
        } else if let RuleAttribute::Iifname(is) = attribute {
            by = Some(is.clone());
        } else if let RuleAttribute::FwMark(is) = attribute {
            by_mark |= *is != 0;
        } else {
            by_traffic |= matches!(
                attribute,
                RuleAttribute::IpProtocol(_)
                    | RuleAttribute::SourcePortRange(_)
                    | RuleAttribute::DestinationPortRange(_)
            );
            others |= !matches!(
                attribute,
                RuleAttribute::Table(_)
                    | RuleAttribute::FwMask(_)
                    | RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
            );
        }
    }
    let is_main =
        header.table == RouteHeader::RT_TABLE_MAIN && header.action == RuleAction::ToTable;
    let is_inverted = header.flags.contains(RuleFlags::Invert);
    let kind = match (by_mark, by_traffic) {
        (false, false) if is_main && !others && !is_inverted => RoutingRuleKind::Main,
        (_, true) if !is_main => RoutingRuleKind::ByTraffic,
        (true, false) if !is_main && !is_inverted => RoutingRuleKind::ByMark,
        // It leads nothing elsewhere, or the kernel's answer tells of it: what is asked for has no
        // mark.
        (_, _) => return None,
    };
    // Of an inverted rule anything may be meant.
    Some(RoutingRule {
        priority,
        is_v4,
        from: from.filter(|_| !is_inverted),
        to: to.filter(|_| !is_inverted),
        by: by.filter(|_| !is_inverted),
        kind,
    })
}
