//! What of a replica outlives a restart.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use wattle_wire::{
    ids::{NodeId, Position},
    lock::Admission,
    peer::{Myself, Peer, View},
    stream::ViewChange,
};

use super::{
    Pin, Refusal, Rejection, Replica,
    draft::{Contested, Draft, put},
    removals::RecentRemovals,
};
use crate::{
    agent::admission::Admitted,
    state_file::{UnknownFields, drop_unreadable},
};

/// [`super::Known`] as it is kept on disk, with all that must outlive a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stored {
    pub position: Position,
    pub view: View,
    /// Peers of the view whose removal waits to be confirmed.
    #[serde(rename = "held", default, skip_serializing_if = "BTreeSet::is_empty")]
    pub removal_pending: BTreeSet<NodeId>,
    /// Peers of the view that the coordinator does not know any more, and never removed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub absent: BTreeSet<NodeId>,
    /// Peers of the view whose announcement the coordinator does not name any more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub withdrawn: BTreeSet<NodeId>,
    /// Peers that went without a confirmation in the last 24 hours.
    #[serde(default, skip_serializing_if = "RecentRemovals::is_empty")]
    pub recent: RecentRemovals,
    /// Records of the coordinator that are not carried out, or not all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Peer>,
    /// As `waiting`, of the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_waiting: Option<Myself>,
    /// What peers that were removed are pinned to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub departed: BTreeMap<NodeId, Pin>,
    /// Peers that the coordinator removed, with the epoch of that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub removed: BTreeMap<NodeId, i64>,
    /// Why the newest revision was not carried out at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejection>,
    /// What follows says nothing until a snapshot comes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_step: bool,
    /// Absent where the host did not require the lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<Admitted>,
    #[serde(flatten, skip_serializing_if = "UnknownFields::is_empty")]
    pub unknown: UnknownFields,
}

impl Stored {
    /// Reads a file. A record that this program cannot read, which a newer one may have written, is
    /// left out, and the coordinator asked for all again. Returns how many there were.
    ///
    /// # Errors
    ///
    /// When the file as a whole cannot be read.
    pub fn read(text: &[u8]) -> serde_json::Result<(Self, usize)> {
        if let Ok(stored) = serde_json::from_slice(text) {
            return Ok((stored, 0));
        }
        let mut file: Value = serde_json::from_slice(text)?;
        let mut lost: usize = ["/view/peers", "/waiting"]
            .map(|records| drop_unreadable::<Peer>(&mut file, records))
            .iter()
            .sum();
        lost += drop_unreadable::<Pin>(&mut file, "/departed");
        lost += drop_unreadable::<Admission>(&mut file, "/admitted/admissions");
        for (field, is_readable) in [
            ("rejected", readable::<Rejection> as fn(&Value) -> bool),
            ("own_waiting", readable::<Myself>),
        ] {
            let fields = file.as_object_mut();
            if let Some(fields) =
                fields.filter(|fields| fields.get(field).is_some_and(|value| !is_readable(value)))
            {
                fields.remove(field);
                lost += 1;
            }
        }
        let mut stored = Self::deserialize(file)?;
        stored.out_of_step = true;
        Ok((stored, lost))
    }

    /// A view that is carried out to the end.
    pub fn new(position: Position, view: View) -> Self {
        Self {
            position,
            view,
            removal_pending: BTreeSet::new(),
            absent: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            recent: RecentRemovals::default(),
            waiting: Vec::new(),
            own_waiting: None,
            departed: BTreeMap::new(),
            removed: BTreeMap::new(),
            rejected: None,
            out_of_step: false,
            admitted: None,
            unknown: UnknownFields::default(),
        }
    }
}

fn readable<T: DeserializeOwned>(value: &Value) -> bool {
    T::deserialize(value).is_ok()
}

impl Replica {
    /// What to keep on disk.
    pub fn stored(&self) -> Option<Stored> {
        let known = self.known.as_ref()?;
        let peers = known.peers.values();
        let view = View {
            mesh: known.mesh.clone(),
            myself: known.myself.clone(),
            peers: peers.map(|known| known.peer.clone()).collect(),
        };
        let withdrawn = known.peers.values().filter(|known| known.withdrawn);
        let Contested {
            waiting,
            own_waiting,
        } = &self.contested;
        let waiting = waiting.values().map(|waiting| &waiting.told.peer);
        let refused = self.refused.values().map(|refused| &refused.told);
        let out = self.returned.out.values().map(|known| &known.peer);
        Some(Stored {
            removal_pending: self.removal_pending.clone(),
            absent: self.absent.clone(),
            withdrawn: withdrawn.map(|known| known.peer.node).collect(),
            recent: self.recent.clone(),
            waiting: waiting.chain(refused).chain(out).cloned().collect(),
            own_waiting: own_waiting.as_ref().map(|waiting| waiting.told.clone()),
            departed: self.departed.clone(),
            removed: self.returned.removed.clone(),
            rejected: self.rejected.clone(),
            out_of_step: self.out_of_step,
            admitted: known.admitted.clone(),
            unknown: self.unknown.clone(),
            ..Stored::new(known.position, view)
        })
    }

    /// Takes up what was kept on disk, as far as it holds. Returns what of the view was refused.
    ///
    /// # Errors
    ///
    /// [`Rejection`] when it is of another mesh; the replica then knows nothing.
    pub fn restore(&mut self, stored: Stored) -> Result<Vec<Refusal>, Rejection> {
        self.departed = stored.departed;
        self.unknown = stored.unknown;
        let View {
            mesh,
            myself,
            peers,
        } = stored.view;
        let next = Draft::new(mesh, myself);
        let peers = peers.into_iter().map(ViewChange::Peer);
        let refused = self.take_in(stored.position, next, peers)?;
        (self.removal_pending, self.absent) = (stored.removal_pending, stored.absent);
        (self.rejected, self.out_of_step) = (stored.rejected, stored.out_of_step);
        for (node, peer) in self.known.iter_mut().flat_map(|known| &mut known.peers) {
            peer.withdrawn = stored.withdrawn.contains(node);
        }
        self.recent = stored.recent;
        self.returned.removed = stored.removed;
        if let (Some(known), Some(operators)) = (&mut self.known, self.operators.clone()) {
            // What other operators signed of removals that wait comes with a snapshot.
            let believed = stored.admitted.as_ref();
            let are_others = believed.is_none_or(|admitted| !admitted.believes(&operators));
            self.out_of_step |= are_others && !self.removal_pending.is_empty();
            known.admitted = Some(match stored.admitted {
                Some(admitted) => admitted.kept(operators, self.mesh, &known.peers),
                None => Admitted::turned_on(operators, self.mesh, &known.peers),
            });
        }
        self.take_up_waiting(stored.waiting, stored.own_waiting);
        Ok(refused)
    }

    /// What waited before waits again: the view stays what it was until the next message.
    fn take_up_waiting(&mut self, waiting: Vec<Peer>, own_waiting: Option<Myself>) {
        let Some(known) = &self.known else { return };
        let myself = own_waiting.unwrap_or_else(|| known.myself.clone());
        let mut next = Draft::new(known.mesh.clone(), myself);
        let waiting = waiting.into_iter().map(ViewChange::Peer);
        self.believe_all(known.position.epoch, &mut next, waiting);
        let (refused, told) = (std::mem::take(&mut next.refused), next.peers.clone());
        let out = std::mem::take(&mut next.out);
        let (myself, moves) = (next.myself.clone(), next.myself != known.myself);
        self.settle(&mut next);
        let mut contested = next.contested.unwrap_or_default();
        // What could be carried out by now is with the next message.
        for (node, told) in told {
            told.into_iter().for_each(|told| contested.wait(node, told));
        }
        if moves {
            contested.own_wait(myself);
        }
        self.contested = contested;
        put(&mut self.refused, refused);
        put(&mut self.returned.out, out);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::view,
        testing::{Keys, MESH, directory_of, node_id, snapshot},
    };

    #[test]
    fn h8_a_record_that_a_newer_agent_wrote_costs_itself_alone_and_what_that_one_added_is_kept() {
        let replica = || Replica::new(MESH, Keys::of(1).wireguard_key());
        let mut before = replica();
        let view = view::view(&directory_of(4), node_id(1)).unwrap();
        before.receive(snapshot(view), 0);
        let mut file = serde_json::to_value(before.stored().unwrap()).unwrap();
        file["later"] = json!({"kind": "new"});
        let read = |file: &Value| Stored::read(&serde_json::to_vec(file).unwrap());
        let (same, lost) = read(&file).unwrap();
        assert_eq!((lost, same.out_of_step), (0, false));

        file["view"]["peers"][1]["announced"] = json!({"kind": "hybrid"});
        file["departed"] = json!({"00000000-0000-0000-0000-000000000009": {"kind": "new"}});
        file["rejected"] = json!({"new_reason": 1});
        let (stored, lost) = read(&file).unwrap();
        assert_eq!(lost, 3);
        let mut after = replica();
        assert_eq!(after.restore(stored), Ok(vec![]));
        let peers: Vec<_> = after.known().unwrap().peers.keys().copied().collect();
        assert_eq!(peers, [node_id(2), node_id(4)]);
        assert_eq!(after.resume_from(), None, "all is asked for");
        let kept = serde_json::to_value(after.stored().unwrap()).unwrap();
        assert_eq!(kept["later"], file["later"]);
        assert!(read(&json!({"view": 1})).is_err());
    }
}
