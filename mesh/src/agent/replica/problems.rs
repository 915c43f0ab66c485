//! What of the coordinator's newest word is not carried out.

use ipnet::IpNet;
use wattle_wire::{
    ids::NodeId,
    name::Name,
    report::{Held, HeldBecause, HeldPeer, LostPeer, Problem, ProblemCode},
};

use super::{
    Replica,
    settle::{Claimed, Contest},
};

/// How many names a line lists.
const LISTED: usize = 10;
const COMMAND: &str = "you run `wattle-agent confirm` on this gateway";
const SIGNATURE: &str = "an operator signs the removal with `wattle-agent lock sign`, or you run \
    `wattle-agent confirm` on this gateway";

impl Replica {
    /// What of the coordinator's newest word is not carried out.
    pub fn problems(&self) -> impl Iterator<Item = Problem> {
        let rejected = self.rejected.iter().map(|rejection| {
            let words = format!("rejected the newest revision: {rejection}");
            problem("the newest revision", words)
        });
        let held = self
            .held_in_words()
            .map(|words| problem("removed peers", words));
        let absent = (!self.absent.is_empty()).then(|| {
            let words = format!(
                "the coordinator does not know these peers any more, and never removed them: {}. \
                 They stay until it knows them again or {}",
                self.names(self.absent.iter().copied()),
                self.confirmation()
            );
            problem("lost peers", words)
        });
        let out = &self.returned.out;
        let returned = (!out.is_empty()).then(|| {
            let words = format!(
                "the coordinator has peers again that it had removed, as after an old backup was \
                 restored: {}. They stay out until it removes them again, or {COMMAND}",
                self.names(out.keys().copied())
            );
            problem("returned peers", words)
        });
        let waiting = self.contested.waiting.values().map(|waiting| {
            let peer = &waiting.told.peer;
            let is_new = self.name_of(peer.node).is_none();
            let words = self.waits(&peer.name, peer.node, is_new, &waiting.contests);
            problem(peer.node, words)
        });
        let own_waiting = self.contested.own_waiting.iter().map(|waiting| {
            let myself = &waiting.told;
            let words = self.waits(&myself.name, myself.node, false, &waiting.contests);
            problem(myself.node, words)
        });
        let refused = self.refused.iter();
        let refused = refused
            .map(|(node, refused)| problem(format!("refused {node}"), refused.refusal.to_string()));
        rejected
            .chain(held)
            .chain(absent)
            .chain(returned)
            .chain(own_waiting)
            .chain(waiting)
            .chain(refused)
    }

    fn held_in_words(&self) -> Option<String> {
        let (held, left) = (self.removal_pending.len(), self.recent.len());
        let known = self.known.as_ref().filter(|_| held > 0)?;
        let removed = match self.operators {
            Some(_) => "the coordinator removed peers, and no operator has signed that".to_owned(),
            None => format!(
                "the coordinator removed {} of {} peers within 24 hours",
                held + left,
                known.peers.len() + left
            ),
        };
        let (until, names) = (
            self.confirmation(),
            self.names(self.removal_pending.iter().copied()),
        );
        Some(format!("{removed}. These stay until {until}: {names}"))
    }

    /// What a removal waits for.
    fn confirmation(&self) -> &'static str {
        match self.operators {
            Some(_) => SIGNATURE,
            None => COMMAND,
        }
    }

    /// Whether the coordinator has removed or lost a peer that stays here. It wants no report of
    /// the link with it.
    pub fn is_given_up(&self, node: NodeId) -> bool {
        self.removal_pending.contains(&node) || self.absent.contains(&node)
    }

    /// What [`Replica::awaiting_confirmation`] names, as it is reported.
    pub fn held(&self) -> Option<Held> {
        let (known, all) = (self.known.as_ref()?, self.awaiting_confirmation());
        let because = |node: &NodeId| {
            if self.removal_pending.contains(node) {
                HeldBecause::Removed
            } else if self.absent.contains(node) {
                HeldBecause::Lost
            } else {
                HeldBecause::NotAdmitted
            }
        };
        let mut peers: Vec<_> = all
            .iter()
            .filter_map(|node| known.peers.get(node))
            .map(|held| HeldPeer {
                node: held.peer.node,
                name: held.peer.name.clone(),
                identity: held.statement.identity,
                because: because(&held.peer.node),
                lost: self.absent.contains(&held.peer.node).then(|| LostPeer {
                    site_name: held.peer.site_name.clone(),
                    statement: held.peer.statement.clone(),
                }),
            })
            .collect();
        let total = u32::try_from(peers.len()).unwrap_or(u32::MAX);
        peers.sort_by_key(|peer| peer.because);
        peers.truncate(Held::MOST_PEERS);
        (total > 0).then_some(Held { total, peers })
    }

    fn names(&self, nodes: impl ExactSizeIterator<Item = NodeId>) -> String {
        let more = nodes.len().saturating_sub(LISTED);
        let mut names: Vec<_> = nodes
            .take(LISTED)
            .map(|node| self.name_of(node).map_or(node.to_string(), Name::to_string))
            .collect();
        if more > 0 {
            names.push(format!("{more} more"));
        }
        names.join(", ")
    }

    /// The name of a peer, be it one that stays out.
    pub fn name_of(&self, node: NodeId) -> Option<&Name> {
        let out = || self.returned.out.get(&node);
        let known = self.known.as_ref()?.peers.get(&node).or_else(out);
        known.map(|known| &known.peer.name)
    }

    /// What the word about a node waits for.
    fn waits(&self, name: &Name, node: NodeId, is_new: bool, contests: &[Contest]) -> String {
        let who = if is_new {
            format!("the new {name}")
        } else {
            format!("a change of {name}")
        };
        let Some(Contest { claimed, holder }) = contests.first() else {
            return format!("{who} waits for the next message of the coordinator");
        };
        let what = match claimed {
            Claimed::Key => "its key".to_owned(),
            Claimed::Endpoint(endpoint) => format!("its endpoint {endpoint}"),
            Claimed::Prefix { claimed, held } if claimed == held => claimed.to_string(),
            Claimed::Prefix { claimed, held } => lies_in(*claimed, *held),
        };
        let stays = self.removal_pending.contains(holder) || self.absent.contains(holder);
        let other = self
            .name_of(*holder)
            .map_or_else(|| "this node".to_owned(), Name::to_string);
        if *holder == node {
            format!("{who} is refused: it has {what} already")
        } else if stays {
            format!(
                "{who} waits: {what} belongs to the removed {other}, which stays until {}",
                self.confirmation()
            )
        } else {
            format!(
                "{who} is refused: {what} belongs to {other}. It is taken up when the coordinator \
                 gives it to one of the two"
            )
        }
    }
}

fn problem(subject: impl ToString, words: String) -> Problem {
    Problem {
        subject: subject.to_string(),
        ..Problem::new(ProblemCode::Configuration, words)
    }
}

fn lies_in(claimed: IpNet, held: IpNet) -> String {
    format!("{claimed}, of which {held} is a part or which is a part of it,")
}
