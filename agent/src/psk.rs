//! The preshared keys on disk.

use wattle_mesh::keys::psk::exchange::Exchange;

use crate::store::Store;

const PSKS: &str = "psk.json";

/// The keys that are kept.
pub(crate) fn load(store: &Store) -> anyhow::Result<Exchange> {
    let Some((exchange, lost)) = store.read_with(PSKS, Exchange::read)? else {
        return Ok(Exchange::default());
    };
    if lost > 0 {
        tracing::warn!(
            "{lost} keys of {PSKS} cannot be read, as a newer agent writes them: others \
            are agreed on"
        );
    }
    Ok(exchange)
}

pub(crate) fn save(store: &Store, psks: &Exchange) -> anyhow::Result<()> {
    store.write(PSKS, psks)
}

/// Forgets all keys: they were agreed on with another identity.
pub(crate) fn forget(store: &Store) -> anyhow::Result<()> {
    store.remove(PSKS)
}
