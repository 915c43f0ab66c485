//! Names of sites and nodes.

use std::{fmt, str::FromStr};

use thiserror::Error;
use utoipa::ToSchema;

/// Writes `Serialize` and `Deserialize` for a type that has `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text =
                    <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_as_text;

/// Lets a column hold a type as another one from which it can be made; a row with anything else
/// cannot be read.
macro_rules! sqlx_as {
    ($stored:ty, $type:ty) => {
        #[cfg(feature = "sqlx")]
        impl sqlx::Type<sqlx::Postgres> for $type {
            fn type_info() -> sqlx::postgres::PgTypeInfo {
                <$stored as sqlx::Type<sqlx::Postgres>>::type_info()
            }

            fn compatible(info: &sqlx::postgres::PgTypeInfo) -> bool {
                <$stored as sqlx::Type<sqlx::Postgres>>::compatible(info)
            }
        }

        #[cfg(feature = "sqlx")]
        impl<'r> sqlx::Decode<'r, sqlx::Postgres> for $type {
            fn decode(
                value: sqlx::postgres::PgValueRef<'r>,
            ) -> Result<Self, sqlx::error::BoxDynError> {
                let stored = <$stored as sqlx::Decode<'r, sqlx::Postgres>>::decode(value)?;
                Ok(stored.try_into()?)
            }
        }
    };
}
pub(crate) use sqlx_as;

/// The name of a site or node, `^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`: fit for a host name, a file
/// name and a URL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, ToSchema)]
#[schema(value_type = String, example = "dublin", pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
pub struct Name(String);

/// The text is not a [`Name`].
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "a name has 1 to 63 lower-case letters, digits and hyphens, and begins and ends with a letter \
     or digit"
)]
pub struct InvalidName;

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let bytes = text.as_bytes();
        let valid = (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| inner(*b))
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-');
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

serde_as_text!(Name);
sqlx_as!(String, Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b3_names_are_host_labels() {
        for good in ["a", "new-york", "0", "a--b", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "a b",
            "a\n",
            "a\0",
            "dublín",
            "а",
            "a\u{202e}",
            "%",
            "..",
            &"x".repeat(64),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName), "{bad:?}");
        }
    }
}
