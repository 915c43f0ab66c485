//! What Linux does for many packets of a userspace device at once.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::Deserialize;

/// One of the things that Linux does for many packets at once. A device works without each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// The interface hands over up to 64 KiB of one flow, and takes as much (`IFF_VNET_HDR`).
    Interface,
    /// One call sends many datagrams (`UDP_SEGMENT`).
    Send,
    /// One call receives many datagrams (`UDP_GRO`).
    Receive,
}

impl Offload {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Interface, Self::Send, Self::Receive];
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interface => "interface",
            Self::Send => "send",
            Self::Receive => "receive",
        })
    }
}

impl FromStr for Offload {
    type Err = UnknownOffload;

    fn from_str(name: &str) -> Result<Self, UnknownOffload> {
        Self::ALL
            .into_iter()
            .find(|offload| offload.to_string() == name)
            .ok_or(UnknownOffload)
    }
}

/// A name that no [`Offload`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is one of `interface`, `send` and `receive`")]
pub struct UnknownOffload;

/// What a device uses, on a host that wants some of it off and whose kernel has this release
/// (`uname -r`).
pub fn used(off: &BTreeSet<Offload>, release: &str) -> BTreeSet<Offload> {
    Offload::ALL
        .into_iter()
        .filter(|offload| !off.contains(offload))
        .filter(|offload| *offload != Offload::Send || !spoils_segments(release))
        .collect()
}

/// Whether a kernel of this release spoils batches of datagrams of one size that one call sends, as
/// Linux 7.0 to 7.1.4 do. A program cannot see it: the call succeeds.
pub fn spoils_segments(release: &str) -> bool {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0_u32));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    ((7, 0, 0)..=(7, 1, 4)).contains(&version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_spoil_batches_are_told_by_their_release() {
        for spoils in [
            "7.0.0",
            "7.0",
            "7.0.0-rc3",
            "7.0.12-amd64",
            "7.1",
            "7.1.4-1-default",
        ] {
            assert!(spoils_segments(spoils), "{spoils}");
        }
        for fine in [
            "6.12.117-1",
            "6.99.9",
            "7.1.5",
            "7.1.10",
            "7.2.0",
            "8.0.1",
            "",
            "linux",
        ] {
            assert!(!spoils_segments(fine), "{fine}");
        }
    }

    #[test]
    fn a_device_uses_what_is_neither_off_nor_spoilt() {
        let all = BTreeSet::from(Offload::ALL);
        assert_eq!(used(&BTreeSet::new(), "6.12.0"), all);
        assert_eq!(
            used(&BTreeSet::new(), "7.1.0"),
            BTreeSet::from([Offload::Interface, Offload::Receive])
        );
        for off in Offload::ALL {
            let used = used(&BTreeSet::from([off]), "6.12.0");
            assert_eq!(used.len(), 2);
            assert!(!used.contains(&off));
        }
        assert_eq!(used(&all, "6.12.0"), BTreeSet::new());
    }

    #[test]
    fn an_offload_is_written_as_it_is_read() {
        for offload in Offload::ALL {
            assert_eq!(offload.to_string().parse(), Ok(offload));
        }
        assert_eq!("Send".parse::<Offload>(), Err(UnknownOffload));
    }
}
