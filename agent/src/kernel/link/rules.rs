//! The host's routing rules.

use anyhow::Context;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{
    IpVersion,
    packet_route::{
        route::RouteHeader,
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};
use wattle_mesh::host::way::{RoutingRule, RoutingRuleKind};

use super::{Tables, into_io};

impl Tables {
    /// Those that mean marked packets, and those that lead to the main table by where packets go.
    pub(in crate::kernel) async fn routing_rules(&self) -> anyhow::Result<Vec<RoutingRule>> {
        let mut rules = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let is_v4 = matches!(version, IpVersion::V4);
            let messages = self.0.rule().get(version).execute();
            let messages = messages.try_collect::<Vec<_>>().await;
            let messages = messages
                .map_err(into_io)
                .context("cannot read the routing rules")?;
            rules.extend(messages.iter().filter_map(|message| rule(message, is_v4)));
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
