//! Which certificate authorities an agent trusts, as coordinators name them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wattle_wire::key::Bytes32;

/// Seconds for which an authority that is not named any more stays trusted.
const FORGOTTEN_AFTER_S: i64 = 7 * 86_400;
/// How many are trusted at most, and how many of those a coordinator names.
const MOST: usize = 16;
const MOST_NAMED: usize = 8;

/// The pins of authorities.
///
/// Who has the coordinator could name an authority of its own and no other, and no agent would
/// find the way back. So one that is not named any more stays trusted for a week, and the honest
/// coordinator names it again within that time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorities {
    /// In the order in which they were learned; none are for publicly valid ones.
    #[serde(default)]
    pub pins: Vec<Bytes32>,
    /// Those that are not named any more, and until when they are trusted, in seconds since 1970.
    #[serde(
        rename = "former_pins",
        default,
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    former: BTreeMap<Bytes32, i64>,
}

impl Authorities {
    /// Those of a join string.
    pub fn new(pins: Vec<Bytes32>) -> Self {
        Self {
            pins,
            former: BTreeMap::new(),
        }
    }

    /// A coordinator names the authorities to trust from now on, at a time in seconds since 1970.
    pub fn name(&mut self, mut named: Vec<Bytes32>, unix_s: i64) {
        named.truncate(MOST_NAMED);
        for pin in &self.pins {
            if named.contains(pin) {
                self.former.remove(pin);
            } else {
                let until = unix_s.saturating_add(FORGOTTEN_AFTER_S);
                self.former.entry(*pin).or_insert(until);
            }
        }
        self.former.retain(|_, until| *until > unix_s);
        let stays = |pin: &Bytes32| named.contains(pin) || self.former.contains_key(pin);
        self.pins.retain(stays);
        for pin in named {
            if !self.pins.contains(&pin) {
                self.pins.push(pin);
            }
        }
        // Whoever names ever new ones makes none forgotten that was known before those.
        while self.pins.len() > MOST
            && let Some(last) = self
                .pins
                .iter()
                .rposition(|pin| self.former.contains_key(pin))
        {
            let pin = self.pins.remove(last);
            self.former.remove(&pin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: i64 = 86_400;

    fn pin(number: u8) -> Bytes32 {
        Bytes32::from([number; 32])
    }

    #[test]
    fn e17_an_authority_that_is_not_named_any_more_is_trusted_for_a_week() {
        let mut authorities = Authorities::new(vec![pin(1)]);
        authorities.name(vec![pin(1), pin(2)], 0);
        assert_eq!(authorities.pins, [pin(1), pin(2)]);
        authorities.name(vec![pin(2)], 10);
        authorities.name(vec![pin(2)], 7 * DAY_S);
        assert_eq!(authorities.pins, [pin(1), pin(2)]);
        authorities.name(vec![pin(2)], 7 * DAY_S + 10);
        assert_eq!(authorities, Authorities::new(vec![pin(2)]));
    }

    #[test]
    fn e17_who_names_ever_new_authorities_makes_none_forgotten_that_was_there_before() {
        let mut authorities = Authorities::new(vec![pin(1)]);
        for round in 0..30 {
            let named = (0..8).map(|number| pin(2 + round * 8 + number)).collect();
            authorities.name(named, i64::from(round));
            assert!(authorities.pins.contains(&pin(1)) && authorities.pins.len() <= MOST);
        }
        authorities.name(vec![pin(1)], 6 * DAY_S);
        authorities.name(vec![pin(1)], 14 * DAY_S);
        assert_eq!(authorities, Authorities::new(vec![pin(1)]));
    }

    #[test]
    fn what_is_kept_reads_back_and_pins_of_before_are_read() {
        let mut authorities = Authorities::new(vec![pin(1)]);
        authorities.name(vec![pin(2)], 5);
        let text = serde_json::to_string(&authorities).unwrap();
        assert_eq!(
            serde_json::from_str::<Authorities>(&text).unwrap(),
            authorities
        );
        let text = serde_json::to_string(&serde_json::json!({ "pins": [pin(1)] })).unwrap();
        let read: Authorities = serde_json::from_str(&text).unwrap();
        assert_eq!(read, Authorities::new(vec![pin(1)]));
    }
}
