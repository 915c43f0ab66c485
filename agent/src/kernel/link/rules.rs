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
    /// Those that mean marked packets, and those that lead to the main table by where packets go.
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
    let (mut priority, mut to, mut marked, mut others) = (0, None, false, false);
    for attribute in &message.attributes {
        if let RuleAttribute::Priority(is) = attribute {
            priority = *is;
        } else if let RuleAttribute::Destination(is) = attribute {
            to = IpNet::new(*is, message.header.dst_len).ok();
        } else if let RuleAttribute::FwMark(is) = attribute {
            marked = *is != 0;
        } else {
            others |= !matches!(
                attribute,
                RuleAttribute::Table(_)
                    | RuleAttribute::FwMask(_)
                    | RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
            );
        }
    }
    let is_inverted = message.header.flags.contains(RuleFlags::Invert);
    let is_main = message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.header.action == RuleAction::ToTable;
    let kind = if marked && !is_inverted {
        RoutingRuleKind::ByMark
    } else {
        let to = to.filter(|_| is_main && !others && !is_inverted && !marked)?;
        RoutingRuleKind::ToMain(to)
    };
    Some(RoutingRule {
        priority,
        is_v4,
        kind,
    })
}
