//! Identifiers: UUIDs that cannot be mistaken for one another, and the position of a copy of the
//! mesh.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ObjectBuilder, RefOr,
        schema::{Schema, Type},
    },
};
use uuid::Uuid;

macro_rules! id {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
        )]
        #[serde(transparent)]
        #[schema(value_type = Uuid)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(MeshId, "The mesh: all sites under one coordinator.");
id!(SiteId, "A place with a name and LAN subnets.");
id!(NodeId, "One enrolled machine, a gateway of its site.");
id!(WebhookId, "A webhook.");
id!(TokenId, "The public half of a join token or an api token.");

/// The beginning of 2026, in seconds since 1970: a clock that shows less is wrong, as one without a
/// battery is after a start.
pub const EARLIEST_S: i64 = 1_767_225_600;

/// How far a copy of the mesh has come: written `epoch.revision`, for example `1.42`.
///
/// The revision grows by one with each change of configuration. The epoch grows when the database
/// was restored from a backup, so that a revision of before the restore is never mistaken for one
/// of after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    pub epoch: i64,
    pub revision: i64,
}

impl Position {
    /// Whether its epoch can have begun by a time, in seconds since 1970. An epoch begins once in
    /// hours at most, and its number is at most that of the seconds. So whatever numbers a lie has
    /// used up, there is a higher one a second later.
    pub fn can_have_begun(self, unix_s: i64) -> bool {
        self.epoch <= unix_s.max(EARLIEST_S)
    }
}

/// The text is not of the form `epoch.revision`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a position is written epoch.revision, for example 1.42")]
pub struct InvalidPosition;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.revision)
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (epoch, revision) = text.split_once('.').ok_or(InvalidPosition)?;
        let number = |digits: &str| {
            digits
                .parse()
                .ok()
                .filter(|n: &i64| n.to_string() == digits && *n >= 0)
        };
        match (number(epoch), number(revision)) {
            (Some(epoch), Some(revision)) => Ok(Self { epoch, revision }),
            _ => Err(InvalidPosition),
        }
    }
}

crate::name::serde_as_text!(Position);

impl PartialSchema for Position {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .examples(["1.42"])
            .into()
    }
}

impl ToSchema for Position {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e14_an_epoch_is_at_most_the_seconds_since_1970_and_a_clock_of_1970_is_not_believed() {
        let of = |epoch| Position {
            epoch,
            revision: i64::MAX,
        };
        let now = EARLIEST_S + 5;
        assert!(of(1).can_have_begun(now) && of(now).can_have_begun(now));
        assert!(!of(now + 1).can_have_begun(now) && !of(i64::MAX).can_have_begun(now));
        assert!(of(EARLIEST_S).can_have_begun(0) && !of(now).can_have_begun(0));
    }

    #[test]
    fn a_position_reads_back_what_it_writes_and_nothing_else() {
        let position = Position {
            epoch: 1,
            revision: 42,
        };
        assert_eq!(position.to_string().parse(), Ok(position));
        for wrong in [
            "",
            "1",
            "1.",
            ".1",
            "01.2",
            "1.-2",
            "1.2.3",
            "+1.2",
            "1.99999999999999999999",
        ] {
            assert_eq!(wrong.parse::<Position>(), Err(InvalidPosition), "{wrong}");
        }
    }
}
