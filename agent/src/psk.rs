//! Preshared keys: what of them is kept on disk, and the errands to the coordinator's mailbox on which nodes agree on them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::kem::{DecapsulationKey, EncapsulationKey, ML_KEM_768};
use tokio::sync::oneshot;
use tracing::{debug, info, warn};
use wattle_mesh::{
    machine::Machine,
    psk::{Ignored, Kem, KemSecret, exchange::Exchange},
    replica::Known,
    state::Link,
};
use wattle_wire::{
    ids::NodeId,
    key::{KemCiphertext, KemKey},
    psk::{Errand, IncomingLetter, Mail, OutgoingLetter, SignedPskMessage},
};
use zeroize::Zeroizing;

use crate::{
    coordinator::{Coordinator, RequestError},
    identity::{Membership, unix_s},
    store::Store,
};

const PSKS: &str = "psk.json";
/// How long to wait after an errand that failed.
const PAUSE: Duration = Duration::from_secs(5);

/// How many letters of nodes wait that the view does not hold yet.
const MOST_EARLY: usize = 1024;

/// The keys that are kept.
pub(crate) fn load(store: &Store) -> anyhow::Result<Exchange> {
    Ok(store.read(PSKS)?.unwrap_or_default())
}

/// Forgets all keys: they were agreed on with another identity.
pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
    store.remove(PSKS)
}

/// The keys of this node's tunnels, and the letters about them.
#[derive(Debug)]
pub(crate) struct Correspondence {
    store: Store,
    exchange: Exchange,
    /// What is to be sent: a newer letter to the same node takes the place of an older one.
    outbox: BTreeMap<NodeId, SignedPskMessage>,
    /// Letters that were dealt with, and what came of them is kept on disk.
    taken: Vec<i64>,
    /// Peers of whose new WireGuard key no handshake has succeeded yet.
    unsettled: BTreeSet<NodeId>,
    /// Letters of nodes that the view does not hold yet, for a letter may be faster than the view, and of those that are unsettled.
    early: BTreeMap<NodeId, SignedPskMessage>,
    /// The coordinator said that there is mail.
    waiting: bool,
    errand: Option<oneshot::Receiver<Done>>,
    problem: Option<String>,
}

/// An errand that is over.
#[derive(Debug)]
pub(crate) struct Done {
    errand: Errand,
    result: Result<Mail, RequestError>,
}

impl Correspondence {
    pub(crate) fn new(store: Store) -> Self {
        let (exchange, problem) = match load(&store) {
            Ok(exchange) => (exchange, None),
            // The keys on the device stay, and new ones are agreed on.
            Err(error) => (Exchange::default(), Some(format!("the preshared keys are lost, new ones are made: {error:#}"))),
        };
        if let Some(problem) = &problem {
            warn!("{problem}");
        }
        let (outbox, taken, unsettled, early) = (BTreeMap::new(), Vec::new(), BTreeSet::new(), BTreeMap::new());
        Self { store, exchange, outbox, taken, unsettled, early, waiting: false, errand: None, problem }
    }

    pub(crate) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// What stands in the way of new keys, in words.
    pub(crate) fn problems(&self, known: &Known) -> impl Iterator<Item = String> {
        self.problem.clone().into_iter().chain(self.exchange.problems(known))
    }

    pub(crate) fn mail_is_waiting(&mut self) {
        self.waiting = true;
    }

    /// Does what is due by now, and reads the letters of nodes that have become known. With `unsettled` peers no key is changed. Whether a key
    /// may have changed.
    pub(crate) fn tick(&mut self, known: &Known, machine: &Machine, unsettled: BTreeSet<NodeId>) -> bool {
        self.unsettled = unsettled;
        // What could not be kept is still at the coordinator.
        self.waiting |= self.problem.is_some();
        let (early, later): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.early).into_iter().partition(|(node, _)| self.is_readable(Some(known), node));
        self.early = later;
        if early.is_empty() && !self.exchange.is_due(known, machine, unix_s(), &self.unsettled) {
            return false;
        }
        let unsettled = std::mem::take(&mut self.unsettled);
        let kept = self.change(|exchange| {
            let mut letters = exchange.tick(known, machine, unix_s(), &SystemKem, &unsettled);
            letters.extend(read(exchange, known, machine, &early));
            letters
        });
        self.unsettled = unsettled;
        kept && !early.is_empty()
    }

    fn is_readable(&self, known: Option<&Known>, from: &NodeId) -> bool {
        known.is_some_and(|known| known.peers.contains_key(from)) && !self.unsettled.contains(from)
    }

    /// Takes note of the handshakes. Whether a key may have changed.
    pub(crate) fn observe(&mut self, known: &Known, link: &Link) -> bool {
        // Most looks find nothing on trial, and a copy of a thousand pairs is megabytes.
        if !self.exchange.is_on_trial() {
            return false;
        }
        let mut next = self.exchange.clone();
        if !next.observe(known, link, unix_s()) {
            // Nothing that has to outlive a restart.
            self.exchange = next;
            return false;
        }
        self.change(|exchange| {
            *exchange = next;
            Vec::new()
        })
    }

    /// Goes on an errand to the mailbox if there is reason to, without waiting for it. One is under way at a time.
    pub(crate) fn go(&mut self, coordinator: &Arc<Coordinator>, machine: &Arc<Machine>, membership: &Membership) {
        if self.errand.is_some() || !(self.waiting || !self.outbox.is_empty() || !self.taken.is_empty()) {
            return;
        }
        self.waiting = false;
        let leave = self.outbox.iter().take(Errand::MOST_LETTERS);
        let leave = leave.map(|(to, message)| OutgoingLetter { to: *to, message: message.clone() }).collect();
        let taken = self.taken.iter().copied().take(Errand::MOST_LETTERS).collect();
        let errand = Errand { leave, taken };
        let (sender, receiver) = oneshot::channel();
        self.errand = Some(receiver);
        let (coordinator, machine, membership) = (Arc::clone(coordinator), Arc::clone(machine), membership.clone());
        tokio::spawn(async move {
            let result = coordinator.mailbox(&machine, &membership, &errand).await;
            if result.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
            let _ = sender.send(Done { errand, result });
        });
    }

    /// Waits until the errand that is under way is over; for ever when none is.
    pub(crate) async fn done(&mut self) -> Option<Done> {
        match &mut self.errand {
            Some(receiver) => receiver.await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Reads what an errand has brought. Whether a key may have changed.
    pub(crate) fn take_in(&mut self, done: Option<Done>, known: Option<&Known>, machine: &Machine) -> bool {
        self.errand = None;
        let Some(Done { errand, result }) = done else { return false };
        let is_refused = matches!(result, Err(RequestError::Refused { status, .. }) if status.is_client_error());
        if result.is_ok() || is_refused {
            // A letter that is refused is for a node that has gone; what else was due is said again in time.
            self.outbox.retain(|to, message| !errand.leave.iter().any(|left| left.to == *to && left.message == *message));
        }
        let mail = match result {
            Ok(mail) => mail,
            Err(error) => {
                debug!("an errand to the mailbox failed: {error:#}");
                self.waiting |= !is_refused || !errand.taken.is_empty();
                return false;
            }
        };
        self.taken.retain(|id| !errand.taken.contains(id));
        let new: Vec<_> = mail.letters.into_iter().take(Errand::MOST_LETTERS).filter(|letter| !self.taken.contains(&letter.id)).collect();
        if new.is_empty() {
            return false;
        }
        self.waiting |= mail.more;
        let ids: Vec<_> = new.iter().map(|letter| letter.id).collect();
        let letters: BTreeMap<_, _> = new.into_iter().map(|IncomingLetter { from, message, .. }| (from, message)).collect();
        let (readable, early): (BTreeMap<_, _>, BTreeMap<_, _>) = letters.into_iter().partition(|(from, _)| self.is_readable(known, from));
        let kept = match known {
            Some(known) if !readable.is_empty() => self.change(|exchange| read(exchange, known, machine, &readable)),
            Some(_) | None => true,
        };
        if kept {
            // Letters of strangers are only kept as many as a coordinator without malice could have.
            self.early.extend(early.into_iter().take(MOST_EARLY.saturating_sub(self.early.len())));
            self.taken.extend(ids);
        } else {
            // The disk is at fault: they wait at the coordinator.
            self.waiting = false;
        }
        kept && !readable.is_empty()
    }

    /// Changes what is known, keeps it, and only then puts what it says into the outbox. Whether it could be kept.
    fn change(&mut self, work: impl FnOnce(&mut Exchange) -> Vec<OutgoingLetter>) -> bool {
        let mut next = self.exchange.clone();
        let letters = work(&mut next);
        match self.store.write(PSKS, &next.kept()) {
            Ok(()) => {
                self.problem = None;
                self.exchange = next;
                self.outbox.extend(letters.into_iter().map(|letter| (letter.to, letter.message)));
                true
            }
            Err(error) => {
                let problem = format!("preshared keys are not changed: {error:#}");
                if self.problem.as_ref() != Some(&problem) {
                    warn!("{problem}");
                }
                self.problem = Some(problem);
                false
            }
        }
    }
}

fn read(exchange: &mut Exchange, known: &Known, machine: &Machine, letters: &BTreeMap<NodeId, SignedPskMessage>) -> Vec<OutgoingLetter> {
    let mut answers = Vec::new();
    for (from, message) in letters {
        let Some(peer) = known.peers.get(from) else { continue };
        let name = &peer.peer.name;
        match exchange.receive(known, machine, peer, message, unix_s(), &SystemKem) {
            Ok(answer) => answers.extend(answer),
            Err(reason @ (Ignored::Signature | Ignored::Address | Ignored::Unreadable | Ignored::Kem)) => {
                warn!(%name, "a letter about the preshared key is not believed: {reason}");
            }
            Err(reason @ (Ignored::Old | Ignored::Unexpected | Ignored::Keys)) => {
                info!(%name, "a letter about the preshared key is passed over: {reason}")
            }
        }
    }
    answers
}

/// ML-KEM-768 with the system's random numbers.
struct SystemKem;

impl Kem for SystemKem {
    fn generate(&self) -> Option<(KemSecret, KemKey)> {
        let secret = DecapsulationKey::generate(&ML_KEM_768).ok()?;
        let key: [u8; 1184] = secret.encapsulation_key().ok()?.key_bytes().ok()?.as_ref().try_into().ok()?;
        Some((KemSecret(Arc::new(secret)), key.into()))
    }

    fn encapsulate(&self, key: &KemKey) -> Option<(KemCiphertext, Zeroizing<[u8; 32]>)> {
        let (ciphertext, secret) = EncapsulationKey::new(&ML_KEM_768, key.as_bytes()).ok()?.encapsulate().ok()?;
        let ciphertext: [u8; 1088] = ciphertext.as_ref().try_into().ok()?;
        Some((ciphertext.into(), Zeroizing::new(secret.as_ref().try_into().ok()?)))
    }
}
