//! The mesh as those see it who watch it, and what is new to each of them.

use std::collections::BTreeMap;

use wattle_wire::{
    admin::{Node, Site},
    ids::{NodeId, Position, SiteId},
    news::{LinkNews, MeshNews},
};

/// Removals that are remembered; who has not heard of an older one is told everything.
const REMEMBERED: usize = 10_000;

/// What can be seen at one moment.
#[derive(Clone, Debug)]
pub struct Sight {
    pub position: Position,
    pub sites: Vec<Site>,
    pub nodes: Vec<Node>,
    /// Links that may be another way than they were, and those of nodes that the board does not
    /// know yet. A link goes with either of its nodes.
    pub links: Vec<LinkNews>,
}

/// What was seen last, each part with the number of the look that found it so.
///
/// Who watches remembers one number: the look up to which it was told.
#[derive(Debug)]
pub struct Board {
    /// The last look that found something new.
    look: u64,
    position: Position,
    sites: BTreeMap<SiteId, (u64, Site)>,
    nodes: BTreeMap<NodeId, (u64, Node)>,
    links: BTreeMap<[NodeId; 2], (u64, LinkNews)>,
    removed_sites: BTreeMap<SiteId, u64>,
    removed_nodes: BTreeMap<NodeId, u64>,
    /// The newest look of which removals were forgotten.
    forgotten: u64,
}

impl Board {
    /// A board on which nothing stands yet.
    pub fn new() -> Self {
        Self {
            look: 0,
            position: Position {
                epoch: 0,
                revision: 0,
            },
            sites: BTreeMap::new(),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            removed_sites: BTreeMap::new(),
            removed_nodes: BTreeMap::new(),
            forgotten: 0,
        }
    }

    /// The last look that found something new.
    pub fn look(&self) -> u64 {
        self.look
    }

    /// Whether a node was seen.
    pub fn knows(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Takes in what is to be seen now.
    pub fn see(&mut self, sight: Sight) {
        let look = self.look + 1;
        let Sight {
            position,
            sites,
            nodes,
            links,
        } = sight;
        let sites = settle(
            &mut self.sites,
            sites.into_iter().map(|site| (site.id, site)),
            look,
            PartialEq::eq,
        );
        let nodes = settle(
            &mut self.nodes,
            nodes.into_iter().map(|node| (node.id, node)),
            look,
            same_node,
        );
        let changed = |link: &LinkNews| {
            self.links
                .get(&link.ends)
                .is_none_or(|(_, known)| known != link)
        };
        let links: Vec<_> = links.into_iter().filter(changed).collect();
        let links_changed = !links.is_empty();
        self.links
            .extend(links.into_iter().map(|link| (link.ends, (look, link))));
        if !nodes.gone.is_empty() {
            self.links
                .retain(|ends, _| ends.iter().all(|end| self.nodes.contains_key(end)));
        }
        if position == self.position && !(sites.changed || nodes.changed || links_changed) {
            return;
        }
        (self.look, self.position) = (look, position);
        self.removed_sites
            .extend(sites.gone.into_iter().map(|site| (site, look)));
        self.removed_nodes
            .extend(nodes.gone.into_iter().map(|node| (node, look)));
        if self.removed_sites.len() + self.removed_nodes.len() > REMEMBERED {
            self.removed_sites.clear();
            self.removed_nodes.clear();
            self.forgotten = look;
        }
    }

    /// What is new since a look; everything for who was told nothing. `None` when nothing is new.
    pub fn news(&self, since: Option<u64>) -> Option<MeshNews> {
        let known = since.filter(|since| (self.forgotten..=self.look).contains(since));
        if known == Some(self.look) {
            return None;
        }
        let since = known.unwrap_or_default();
        Some(MeshNews {
            position: self.position,
            complete: known.is_none(),
            sites: newer(&self.sites, since),
            nodes: newer(&self.nodes, since),
            links: newer(&self.links, since),
            removed_sites: known
                .map(|since| removed(&self.removed_sites, since))
                .unwrap_or_default(),
            removed_nodes: known
                .map(|since| removed(&self.removed_nodes, since))
                .unwrap_or_default(),
        })
    }
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

struct Settled<K> {
    changed: bool,
    gone: Vec<K>,
}

fn settle<K: Ord + Copy, V>(
    board: &mut BTreeMap<K, (u64, V)>,
    sight: impl Iterator<Item = (K, V)>,
    look: u64,
    same: impl Fn(&V, &V) -> bool,
) -> Settled<K> {
    let mut changed = false;
    let mut before = std::mem::take(board);
    for (key, value) in sight {
        let entry = match before.remove(&key) {
            Some(known) if same(&known.1, &value) => known,
            _ => {
                changed = true;
                (look, value)
            }
        };
        board.insert(key, entry);
    }
    changed |= !before.is_empty();
    Settled {
        changed,
        gone: before.into_keys().collect(),
    }
}

/// Whether a node is the same but for the time of its last report, which is not news.
fn same_node(a: &Node, b: &Node) -> bool {
    let mut a = a.clone();
    if let (Some(a), Some(b)) = (&mut a.last_report, &b.last_report) {
        a.at = b.at;
    }
    a == *b
}

fn newer<K, V: Clone>(board: &BTreeMap<K, (u64, V)>, since: u64) -> Vec<V> {
    board
        .values()
        .filter(|(look, _)| *look > since)
        .map(|(_, value)| value.clone())
        .collect()
}

fn removed<K: Copy>(board: &BTreeMap<K, u64>, since: u64) -> Vec<K> {
    board
        .iter()
        .filter(|(_, look)| **look > since)
        .map(|(key, _)| *key)
        .collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;
    use wattle_wire::admin::{LinkState, NodeState};

    use super::*;
    use crate::testing::machine_of;

    fn position(revision: i64) -> Position {
        Position { epoch: 1, revision }
    }

    fn site(number: u128, description: &str) -> Site {
        Site {
            id: SiteId(Uuid::from_u128(number)),
            name: format!("site-{number}").parse().unwrap(),
            description: description.to_owned(),
            labels: BTreeMap::new(),
            endpoint: None,
            subnets: Vec::new(),
            tunnel_address: [10, 99, 0, 1].into(),
            nodes: Vec::new(),
            created_at: DateTime::UNIX_EPOCH,
        }
    }

    fn node(number: u128) -> Node {
        Node {
            id: NodeId(Uuid::from_u128(number)),
            name: format!("node-{number}").parse().unwrap(),
            name_follows_site: true,
            site: SiteId(Uuid::from_u128(number)),
            site_name: format!("site-{number}").parse().unwrap(),
            state: NodeState::Active,
            tunnel_address: [10, 99, 0, 1].into(),
            wireguard_key: machine_of(1).wireguard_key(),
            identity_key: machine_of(1).identity_key(),
            endpoint: None,
            endpoint_verified: true,
            admission: None,
            admitted: false,
            agent_version: Some(String::new()),
            unmanaged: None,
            enrolled_at: DateTime::UNIX_EPOCH,
            last_report: None,
            rotation: None,
        }
    }

    fn link(state: LinkState) -> LinkNews {
        LinkNews {
            ends: [NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2))],
            state,
            fault: None,
            since: None,
        }
    }

    fn sight(revision: i64, sites: Vec<Site>, links: Vec<LinkNews>) -> Sight {
        Sight {
            position: position(revision),
            sites,
            nodes: Vec::new(),
            links,
        }
    }

    #[test]
    fn who_was_told_nothing_is_told_everything_and_then_only_what_is_new() {
        let mut board = Board::new();
        board.see(sight(
            1,
            vec![site(1, ""), site(2, "")],
            vec![link(LinkState::Up)],
        ));
        let all = board.news(None).unwrap();
        assert!(all.complete);
        assert_eq!((all.sites.len(), all.links.len()), (2, 1));
        let told = board.look();
        assert_eq!(board.news(Some(told)), None);

        board.see(sight(
            1,
            vec![site(1, ""), site(2, "")],
            vec![link(LinkState::Up)],
        ));
        assert_eq!(board.news(Some(told)), None, "the same again is no news");

        board.see(sight(
            2,
            vec![site(1, "changed")],
            vec![link(LinkState::Down)],
        ));
        let expected = MeshNews {
            position: position(2),
            complete: false,
            sites: vec![site(1, "changed")],
            nodes: Vec::new(),
            links: vec![link(LinkState::Down)],
            removed_sites: vec![site(2, "").id],
            removed_nodes: Vec::new(),
        };
        assert_eq!(board.news(Some(told)), Some(expected));
    }

    #[test]
    fn who_comes_back_is_told_what_happened_meanwhile_however_many_looks_that_took() {
        let mut board = Board::new();
        board.see(sight(1, vec![site(1, "")], Vec::new()));
        let told = board.look();
        board.see(sight(2, vec![site(1, ""), site(2, "")], Vec::new()));
        board.see(sight(
            3,
            vec![site(1, ""), site(2, ""), site(3, "")],
            Vec::new(),
        ));
        let news = board.news(Some(told)).unwrap();
        assert_eq!(
            (news.complete, news.position, news.sites),
            (false, position(3), vec![site(2, ""), site(3, "")])
        );
        assert!(
            board.news(Some(board.look() + 1)).unwrap().complete,
            "a look of another board counts as none"
        );
    }

    #[test]
    fn a_link_stays_as_it_was_seen_and_goes_with_either_of_its_nodes() {
        let mut board = Board::new();
        let see = |board: &mut Board, nodes: &[u128], links| {
            board.see(Sight {
                nodes: nodes.iter().map(|number| node(*number)).collect(),
                ..sight(1, vec![], links)
            });
        };
        see(&mut board, &[1, 2], vec![link(LinkState::Up)]);
        see(&mut board, &[1, 2, 3], vec![]);
        assert_eq!(board.news(None).unwrap().links, [link(LinkState::Up)]);
        see(&mut board, &[1, 3], vec![]);
        assert_eq!(board.news(None).unwrap().links, []);
        assert!(board.knows(node(3).id) && !board.knows(node(2).id));
    }

    #[test]
    fn forgotten_removals_cost_a_whole_account() {
        let mut board = Board::new();
        board.see(sight(
            1,
            (0..10_001).map(|number| site(number, "")).collect(),
            Vec::new(),
        ));
        let told = board.look();
        board.see(sight(2, Vec::new(), Vec::new()));
        let news = board.news(Some(told)).unwrap();
        assert!(news.complete && news.removed_sites.is_empty());
    }
}
