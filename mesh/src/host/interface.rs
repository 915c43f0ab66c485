//! Names of network interfaces.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name of a network interface, `^[a-z][a-z0-9_-]{0,14}$`. It comes from local configuration only,
/// and is safe in a path and in a ruleset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct InterfaceName(String);

/// The text is not an [`InterfaceName`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "an interface name has 1 to 15 lower-case letters, digits, - and _, and begins with a letter, \
     for example wattle0"
)]
pub struct InvalidInterfaceName;

impl InterfaceName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = InvalidInterfaceName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterfaceName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let valid = (1..=15).contains(&text.len())
            && text.bytes().all(inner)
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text != "lo";
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidInterfaceName)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d7_only_names_that_are_safe_in_a_path_and_a_ruleset_parse() {
        for good in ["wattle0", "w", "wg-dublin_1", "abcdefghijklmno"] {
            assert!(good.parse::<InterfaceName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "lo",
            "0wattle",
            "Wattle0",
            "abcdefghijklmnop",
            "a.b",
            "wg0/..",
            "../../kernel/core_pattern",
            "a b",
            "a\"b",
            "a\n",
        ] {
            assert_eq!(
                bad.parse::<InterfaceName>(),
                Err(InvalidInterfaceName),
                "{bad}"
            );
        }
    }
}
