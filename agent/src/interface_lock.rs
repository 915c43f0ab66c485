//! One agent alone drives an interface, whatever state folders there are.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
};

use anyhow::{Context, bail};
use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::{Uid, geteuid},
};
use tracing::warn;

use crate::{config::Paths, store::Store};

/// Held by the one `run` of an interface, for as long as it lives.
///
/// It is a socket with an abstract name: the kernel knows such names in each network namespace by
/// itself, and forgets one when its process ends.
#[derive(Debug)]
pub(crate) struct InterfaceLock {
    _listener: Option<UnixListener>,
}

impl InterfaceLock {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// When another agent drives the interface in this network namespace. A name that another user
    /// has taken counts for nothing: anybody could keep the agent from starting.
    pub(crate) fn take(paths: &Paths, store: &Store) -> anyhow::Result<Self> {
        let interface = &paths.interface;
        let address = SocketAddr::from_abstract_name(format!("wattle-agent/{interface}"))?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self {
                _listener: Some(listener),
            }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&address)?;
                let holder = getsockopt(&holder, sockopt::PeerCredentials)?;
                let owner = fs::metadata(store.dir())?.uid();
                let user = Uid::from_raw(holder.uid());
                if user.is_root() || user == geteuid() || user.as_raw() == owner {
                    bail!(
                        "another agent (process {}) drives {interface} here: stop it, or give \
                         this one another --interface",
                        holder.pid()
                    );
                }
                warn!(
                    process = holder.pid(),
                    %user,
                    "another user holds the lock of {interface}, and is passed over"
                );
                Ok(Self { _listener: None })
            }
            Err(error) => Err(error).with_context(|| format!("cannot lock {interface}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i2_one_agent_alone_drives_an_interface_until_it_ends() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let take = |folder: &tempfile::TempDir, interface: &str| {
            let paths = Paths {
                state_dir: folder.path().to_owned(),
                interface: interface.parse().unwrap(),
                guard: folder.path().join("guard.toml"),
            };
            InterfaceLock::take(&paths, &Store::open(folder.path()).unwrap())
        };
        let held = take(&folders[0], "locktest0").unwrap();
        let refused = take(&folders[1], "locktest0").unwrap_err().to_string();
        assert!(refused.contains("drives locktest0 here"), "{refused}");
        take(&folders[1], "locktest1").unwrap();
        drop(held);
        take(&folders[1], "locktest0").unwrap();
    }
}
