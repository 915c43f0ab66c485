//! The cache behind the event stream: the mesh as it was seen last, and what is new to each
//! client.

use std::collections::BTreeMap;

use wattle_wire::{
    admin::{Node, Site},
    event_stream::{LinkStatus, MeshUpdate},
    ids::{NodeId, Position, SiteId},
};

/// Removals that are remembered; who has not heard of an older one is told everything.
const REMEMBERED: usize = 10_000;

/// The mesh at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub position: Position,
    pub sites: Vec<Site>,
    pub nodes: Vec<Node>,
    /// Links that may be another way than they were, and those of nodes that the cache does not
    /// know yet. A link goes with either of its nodes.
    pub links: Vec<LinkStatus>,
}

/// What was seen last, each part with the version in which it changed last.
///
/// A client remembers one number: the version up to which it was told.
#[derive(Debug)]
pub struct WatchCache {
    /// The newest version: it grows when something has changed.
    version: u64,
    position: Position,
    sites: BTreeMap<SiteId, (u64, Site)>,
    nodes: BTreeMap<NodeId, (u64, Node)>,
    links: BTreeMap<[NodeId; 2], (u64, LinkStatus)>,
    removed_sites: BTreeMap<SiteId, u64>,
    removed_nodes: BTreeMap<NodeId, u64>,
    /// The newest version of which removals were forgotten.
    forgotten: u64,
}

impl WatchCache {
    /// A cache that holds nothing yet.
    pub fn new() -> Self {
        Self {
            version: 0,
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

    /// The newest version: it grows when something has changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether a node was seen.
    pub fn knows(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Takes in what the mesh is now.
    pub fn update(&mut self, snapshot: Snapshot) {
        let version = self.version + 1;
        let Snapshot {
            position,
            sites,
            nodes,
            links,
        } = snapshot;
        let sites = refresh(
            &mut self.sites,
            sites.into_iter().map(|site| (site.id, site)),
            version,
            PartialEq::eq,
        );
        let nodes = refresh(
            &mut self.nodes,
            nodes.into_iter().map(|node| (node.id, node)),
            version,
            same_node,
        );
        let changed = |link: &LinkStatus| {
            self.links
                .get(&link.ends)
                .is_none_or(|(_, known)| known != link)
        };
        let links: Vec<_> = links.into_iter().filter(changed).collect();
        let links_changed = !links.is_empty();
        self.links
            .extend(links.into_iter().map(|link| (link.ends, (version, link))));
        if !nodes.gone.is_empty() {
            self.links
                .retain(|ends, _| ends.iter().all(|end| self.nodes.contains_key(end)));
        }
        if position == self.position && !(sites.changed || nodes.changed || links_changed) {
            return;
        }
        (self.version, self.position) = (version, position);
        self.removed_sites
            .extend(sites.gone.into_iter().map(|site| (site, version)));
        self.removed_nodes
            .extend(nodes.gone.into_iter().map(|node| (node, version)));
        if self.removed_sites.len() + self.removed_nodes.len() > REMEMBERED {
            self.removed_sites.clear();
            self.removed_nodes.clear();
            self.forgotten = version;
        }
    }

    /// What is new since a version; everything for a client that was told nothing. `None` when
    /// nothing is new.
    pub fn changes_since(&self, since: Option<u64>) -> Option<MeshUpdate> {
        let known = since.filter(|since| (self.forgotten..=self.version).contains(since));
        if known == Some(self.version) {
            return None;
        }
        let since = known.unwrap_or_default();
        Some(MeshUpdate {
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

impl Default for WatchCache {
    fn default() -> Self {
        Self::new()
    }
}

struct Refreshed<K> {
    changed: bool,
    gone: Vec<K>,
}

fn refresh<K: Ord + Copy, V>(
    cache: &mut BTreeMap<K, (u64, V)>,
    snapshot: impl Iterator<Item = (K, V)>,
    version: u64,
    same: impl Fn(&V, &V) -> bool,
) -> Refreshed<K> {
    let mut changed = false;
    let mut before = std::mem::take(cache);
    for (key, value) in snapshot {
        let entry = match before.remove(&key) {
            Some(known) if same(&known.1, &value) => known,
            _ => {
                changed = true;
                (version, value)
            }
        };
        cache.insert(key, entry);
    }
    changed |= !before.is_empty();
    Refreshed {
        changed,
        gone: before.into_keys().collect(),
    }
}

/// Whether a node is the same but for the time of its last report, which is no change.
fn same_node(a: &Node, b: &Node) -> bool {
    let mut a = a.clone();
    if let (Some(a), Some(b)) = (&mut a.last_report, &b.last_report) {
        a.at = b.at;
    }
    a == *b
}

fn newer<K, V: Clone>(cache: &BTreeMap<K, (u64, V)>, since: u64) -> Vec<V> {
    cache
        .values()
        .filter(|(version, _)| *version > since)
        .map(|(_, value)| value.clone())
        .collect()
}

fn removed<K: Copy>(cache: &BTreeMap<K, u64>, since: u64) -> Vec<K> {
    cache
        .iter()
        .filter(|(_, version)| **version > since)
        .map(|(key, _)| *key)
        .collect()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;
    use wattle_wire::admin::{LanState, LinkState, NodeState};

    use super::*;
    use crate::testing::node_keys_of;

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
            wireguard_key: node_keys_of(1).wireguard_key(),
            identity_key: node_keys_of(1).identity_key(),
            endpoint: None,
            endpoint_verified: true,
            admission: None,
            admitted: false,
            agent_version: Some(String::new()),
            unmanaged: None,
            enrolled_at: DateTime::UNIX_EPOCH,
            connection: None,
            lan: LanState::Unknown,
            problems: Vec::new(),
            last_report: None,
            held: None,
            locked: false,
            removed_on: None,
            rotation: None,
        }
    }

    fn link(state: LinkState) -> LinkStatus {
        LinkStatus {
            ends: [NodeId(Uuid::from_u128(1)), NodeId(Uuid::from_u128(2))],
            state,
            fault: None,
            since: None,
        }
    }

    fn snapshot(revision: i64, sites: Vec<Site>, links: Vec<LinkStatus>) -> Snapshot {
        Snapshot {
            position: position(revision),
            sites,
            nodes: Vec::new(),
            links,
        }
    }

    #[test]
    fn who_was_told_nothing_is_told_everything_and_then_only_what_is_new() {
        let mut cache = WatchCache::new();
        cache.update(snapshot(
            1,
            vec![site(1, ""), site(2, "")],
            vec![link(LinkState::Up)],
        ));
        let all = cache.changes_since(None).unwrap();
        assert!(all.complete);
        assert_eq!((all.sites.len(), all.links.len()), (2, 1));
        let told = cache.version();
        assert_eq!(cache.changes_since(Some(told)), None);

        cache.update(snapshot(
            1,
            vec![site(1, ""), site(2, "")],
            vec![link(LinkState::Up)],
        ));
        assert_eq!(
            cache.changes_since(Some(told)),
            None,
            "the same again is no change"
        );

        cache.update(snapshot(
            2,
            vec![site(1, "changed")],
            vec![link(LinkState::Down)],
        ));
        let expected = MeshUpdate {
            position: position(2),
            complete: false,
            sites: vec![site(1, "changed")],
            nodes: Vec::new(),
            links: vec![link(LinkState::Down)],
            removed_sites: vec![site(2, "").id],
            removed_nodes: Vec::new(),
        };
        assert_eq!(cache.changes_since(Some(told)), Some(expected));
    }

    #[test]
    fn who_comes_back_is_told_what_happened_meanwhile_however_many_versions_that_took() {
        let mut cache = WatchCache::new();
        cache.update(snapshot(1, vec![site(1, "")], Vec::new()));
        let told = cache.version();
        cache.update(snapshot(2, vec![site(1, ""), site(2, "")], Vec::new()));
        cache.update(snapshot(
            3,
            vec![site(1, ""), site(2, ""), site(3, "")],
            Vec::new(),
        ));
        let changes = cache.changes_since(Some(told)).unwrap();
        assert_eq!(
            (changes.complete, changes.position, changes.sites),
            (false, position(3), vec![site(2, ""), site(3, "")])
        );
        assert!(
            cache
                .changes_since(Some(cache.version() + 1))
                .unwrap()
                .complete,
            "a version of another cache counts as none"
        );
    }

    #[test]
    fn a_link_stays_as_it_was_seen_and_goes_with_either_of_its_nodes() {
        let mut cache = WatchCache::new();
        let see = |cache: &mut WatchCache, nodes: &[u128], links| {
            cache.update(Snapshot {
                nodes: nodes.iter().map(|number| node(*number)).collect(),
                ..snapshot(1, vec![], links)
            });
        };
        see(&mut cache, &[1, 2], vec![link(LinkState::Up)]);
        see(&mut cache, &[1, 2, 3], vec![]);
        assert_eq!(
            cache.changes_since(None).unwrap().links,
            [link(LinkState::Up)]
        );
        see(&mut cache, &[1, 3], vec![]);
        assert_eq!(cache.changes_since(None).unwrap().links, []);
        assert!(cache.knows(node(3).id) && !cache.knows(node(2).id));
    }

    #[test]
    fn forgotten_removals_cost_a_whole_account() {
        let mut cache = WatchCache::new();
        cache.update(snapshot(
            1,
            (0..10_001).map(|number| site(number, "")).collect(),
            Vec::new(),
        ));
        let told = cache.version();
        cache.update(snapshot(2, Vec::new(), Vec::new()));
        let changes = cache.changes_since(Some(told)).unwrap();
        assert!(changes.complete && changes.removed_sites.is_empty());
    }
}
