//! How often an agent was started on the state directory, so that a copy of it is noticed.

use tracing::warn;
use wattle_wire::report::Start;

use crate::{random, store::Store};

const STARTS: &str = "starts.json";

/// Counts this start in the state directory. Without a count the agent runs all the same: only a
/// copy of the directory would go unnoticed.
pub(crate) fn count(store: &Store) -> Option<Start> {
    let counted = || {
        let number = store.read::<i64>(STARTS)?.unwrap_or(0).saturating_add(1);
        store.write(STARTS, &number)?;
        anyhow::Ok(Start {
            number,
            drawn: i64::from_be_bytes(*random::bytes()?),
        })
    };
    counted()
        .inspect_err(|error| warn!("cannot count the starts of the agent: {error:#}"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a18_each_start_has_the_next_number_and_draws_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let starts: Vec<_> = (0..3).map(|_| count(&store).unwrap()).collect();
        assert_eq!(
            starts.iter().map(|start| start.number).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        assert!(starts[0].drawn != starts[1].drawn && starts[1].drawn != starts[2].drawn);
    }
}
