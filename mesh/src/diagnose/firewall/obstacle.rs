//! What is in the way of a packet, in words.

use std::fmt;

use super::Hook;

/// What a chain does against a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub family: String,
    pub table: String,
    /// The chain of the rule, or the one whose policy it is.
    pub chain: String,
    /// The chain by which the packet came there.
    pub base: String,
    pub hook: Hook,
    /// Whether the chain is of iptables-legacy.
    pub legacy: bool,
    /// Absent when it is the policy of the chain.
    pub rule: Option<RuleNumber>,
    pub deed: Deed,
    /// Whether it happens for sure. Otherwise the rule, or one before it, asks what cannot be known
    /// from here.
    pub certain: bool,
}

/// How a rule of a chain is told from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleNumber {
    /// As nft knows it; rules of iptables-legacy have none.
    pub handle: Option<u64>,
    /// Its place in the chain, from 1, as iptables counts.
    pub number: usize,
}

/// What is done to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    Drop,
    Reject,
    /// Its destination address is replaced, or it is given to a program of the host.
    Redirect,
    /// Its source address is replaced.
    Rewrite,
    /// Its source address is replaced by that of the interface by which it leaves.
    Masquerade,
}

impl Obstacle {
    /// The chain in the words of `nft`: its family, table and name. One of iptables-legacy has the
    /// name of the program in place of the family.
    pub fn place(&self) -> String {
        let Self { table, chain, .. } = self;
        let owner = if self.legacy {
            self.iptables()
        } else {
            &self.family
        };
        format!("{owner} {table} {chain}")
    }

    /// The zone of firewalld whose chain it is.
    pub fn zone(&self) -> Option<&str> {
        let is_firewalld = self.table == "firewalld";
        is_firewalld.then(|| self.chain.strip_prefix("filter_IN_"))?
    }

    /// The iptables that shows the chain, if one does.
    pub fn iptables(&self) -> &'static str {
        match (self.family == "ip6", self.legacy) {
            (false, false) => "iptables",
            (true, false) => "ip6tables",
            (false, true) => "iptables-legacy",
            (true, true) => "ip6tables-legacy",
        }
    }
}

impl fmt::Display for RuleNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.handle {
            Some(handle) => write!(f, "{handle}"),
            None => write!(f, "{}", self.number),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place();
        let may = |does: &'static str, may: &'static str| if self.certain { does } else { may };
        match (self.rule, self.deed) {
            (None, _) => write!(
                f,
                "the chain {place} {} what no rule accepts",
                may("drops", "may drop")
            ),
            (Some(rule), deed) => write!(
                f,
                "rule {rule} of the chain {place} {}",
                match deed {
                    Deed::Drop => may("drops it", "may drop it"),
                    Deed::Reject => may("rejects it", "may reject it"),
                    Deed::Redirect => may("leads it elsewhere", "may lead it elsewhere"),
                    Deed::Rewrite | Deed::Masquerade => may(
                        "replaces its source address",
                        "may replace its source address"
                    ),
                }
            ),
        }
    }
}
