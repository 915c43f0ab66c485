//! The audit log: a chain of events in which each is bound to all before it, so that none can be
//! altered, left out or put in unseen.

mod difference;
mod sentence;
mod subject;

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{Context, SHA256};
use chrono::{DateTime, Utc};
use thiserror::Error;
use wattle_wire::key::Bytes32;

pub use self::{
    difference::difference,
    sentence::sentence,
    subject::{Edit, Subject},
};

/// What every hash of an event begins with.
pub const CONTEXT: &[u8] = b"wattle event v2\0";
/// Stands for the digest of what was not there.
pub const ABSENT: &[u8; 32] = &[0; 32];

/// What an event says that is known before it gets its place.
#[derive(Clone, Copy, Debug)]
pub struct Content<'e> {
    pub actor: &'e str,
    pub actor_name: &'e str,
    pub actor_site: Option<&'e str>,
    pub action: &'e str,
    pub object: &'e str,
    pub object_name: &'e str,
    pub object_site: Option<&'e str>,
    /// The JSON of what was changed, byte for byte as it is kept.
    pub changes: &'e str,
    pub request_id: Option<&'e str>,
    /// Digest of the object as the event left it.
    pub after: Option<Bytes32>,
}

/// What an event says, apart from its place in the chain.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'e> {
    /// To the microsecond, as Postgres keeps it.
    pub at: DateTime<Utc>,
    pub revision: Option<i64>,
    /// Digest of the object as the event found it.
    pub before: Option<Bytes32>,
    pub content: Content<'e>,
}

/// A place in the chain: how many events there are up to it, and what binds them. Written
/// `number.hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub number: i64,
    pub hash: Bytes32,
}

/// Where the chain is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    #[error("event {0} is missing")]
    Missing(i64),
    #[error("event {0}, or one before it, is not what it was")]
    Altered(i64),
}

/// SHA-256 of something.
pub fn digest(bytes: &[u8]) -> Bytes32 {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    finish(context)
}

impl Content<'_> {
    /// SHA-256 over each field with its length, absent told from empty.
    pub fn digest(&self) -> Bytes32 {
        let mut context = Context::new(&SHA256);
        let mut field = |bytes: Option<&[u8]>| {
            let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
            context.update(&length.to_be_bytes());
            context.update(bytes.unwrap_or_default());
        };
        for text in [
            Some(self.actor),
            Some(self.actor_name),
            self.actor_site,
            Some(self.action),
            Some(self.object),
            Some(self.object_name),
            self.object_site,
            Some(self.changes),
            self.request_id,
        ] {
            field(text.map(str::as_bytes));
        }
        field(
            self.after
                .as_ref()
                .map(|digest| digest.as_bytes().as_slice()),
        );
        finish(context)
    }
}

impl Head {
    /// Before the first event.
    pub fn start() -> Self {
        Self {
            number: 0,
            hash: Bytes32::from([0; 32]),
        }
    }

    /// The place of the next event.
    pub fn then(self, entry: &Entry<'_>) -> Self {
        let number = self.number.saturating_add(1);
        let mut context = Context::new(&SHA256);
        // All of fixed length, so that two events never look the same. No revision is 0.
        context.update(CONTEXT);
        context.update(self.hash.as_bytes());
        context.update(&number.to_be_bytes());
        context.update(&entry.at.timestamp_micros().to_be_bytes());
        context.update(&entry.revision.unwrap_or_default().to_be_bytes());
        context.update(
            entry
                .before
                .as_ref()
                .map_or(ABSENT.as_slice(), |digest| digest.as_bytes()),
        );
        context.update(entry.content.digest().as_bytes());
        Self {
            number,
            hash: finish(context),
        }
    }

    /// Goes on to the next event as it was found, with the place that it claims.
    ///
    /// # Errors
    ///
    /// When that is not its place.
    pub fn follow(self, entry: &Entry<'_>, claimed: Self) -> Result<Self, Broken> {
        let next = self.then(entry);
        if claimed.number != next.number {
            return Err(Broken::Missing(next.number));
        }
        if claimed == next {
            Ok(next)
        } else {
            Err(Broken::Altered(next.number))
        }
    }
}

fn finish(context: Context) -> Bytes32 {
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Bytes32::from(hash)
}

/// The text is not of the form `number.hash`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("an end of the audit log is number.hash, as `wattle-server audit verify` prints it")]
pub struct InvalidHead;

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.number, self.hash)
    }
}

impl FromStr for Head {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, hash) = text.split_once('.').ok_or(InvalidHead)?;
        Ok(Self {
            number: number.parse().map_err(|_| InvalidHead)?,
            hash: hash.parse().map_err(|_| InvalidHead)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry<'static> {
        let at = DateTime::from_timestamp_micros(1_800_000_000_000_001).unwrap();
        let content = Content {
            actor: "api-token:1",
            actor_name: "carol",
            actor_site: None,
            action: "site.change",
            object: "2",
            object_name: "hq",
            object_site: Some("hq"),
            changes: "[]",
            request_id: None,
            after: None,
        };
        Entry {
            at,
            revision: Some(3),
            before: Some(digest(b"before")),
            content,
        }
    }

    #[test]
    fn each_field_and_each_event_before_counts() {
        let first = Head::start().then(&entry());
        assert_eq!(Head::start().follow(&entry(), first), Ok(first));
        let content = entry().content;
        let contents = [
            Content {
                actor: "api-token:2",
                ..content
            },
            Content {
                actor: "api-token:1c",
                actor_name: "arol",
                ..content
            },
            Content {
                action: "site.remove",
                ..content
            },
            Content {
                object: "3",
                ..content
            },
            Content {
                actor_name: "dave",
                ..content
            },
            Content {
                actor_site: Some("hq"),
                ..content
            },
            Content {
                object_name: "branch",
                ..content
            },
            Content {
                object_site: None,
                ..content
            },
            Content {
                changes: "[ ]",
                ..content
            },
            Content {
                request_id: Some(""),
                ..content
            },
            Content {
                after: Some(Bytes32::from(*ABSENT)),
                ..content
            },
        ];
        let others = [
            Entry {
                at: entry().at + chrono::TimeDelta::microseconds(1),
                ..entry()
            },
            Entry {
                revision: None,
                ..entry()
            },
            Entry {
                before: None,
                ..entry()
            },
        ];
        let others = contents
            .map(|content| Entry { content, ..entry() })
            .into_iter()
            .chain(others);
        for other in others {
            assert_eq!(
                Head::start().follow(&other, first),
                Err(Broken::Altered(1)),
                "{other:?}"
            );
        }
        let second = first.then(&entry());
        assert_ne!(second.hash, first.hash);
        assert_eq!(
            Head::start().follow(&entry(), second),
            Err(Broken::Missing(1))
        );
        assert_eq!(
            Head {
                number: 1,
                hash: digest(b"")
            }
            .follow(&entry(), second),
            Err(Broken::Altered(2))
        );
    }

    #[test]
    fn a_head_reads_back() {
        let head = Head::start().then(&entry());
        assert_eq!(head.to_string().parse(), Ok(head));
        assert_eq!(head.to_string(), "1.".to_owned() + &head.hash.to_string());
        for wrong in ["", "1", "1.", "x.y", ".AAAA"] {
            assert_eq!(wrong.parse::<Head>(), Err(InvalidHead), "{wrong}");
        }
    }
}
