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
    sync::OnceLock,
};

use nix::{
    sys::socket::{getsockopt, sockopt},
    unistd::{Uid, geteuid},
};
use tracing::warn;
use wattle_mesh::host::interface::InterfaceName;
use wattle_wire::report::{LanEffect, Problem, ProblemCode};

use crate::{config::Settings, kernel::symptoms, store::Store};

/// Held by the one `run` that drives an interface, for as long as it lives.
///
/// It is a socket with an abstract name: the kernel knows such names in each network namespace by
/// itself, and forgets one when its process ends.
#[derive(Debug)]
pub(crate) struct InterfaceLock {
    interface: InterfaceName,
    /// The user whose the state folder is.
    owner: u32,
    /// Empty before the lock is held; without a socket where another user's name was passed over.
    held: OnceLock<Option<UnixListener>>,
}

impl InterfaceLock {
    pub(crate) fn new(settings: &Settings, store: &Store) -> anyhow::Result<Self> {
        Ok(Self {
            interface: settings.interface.clone(),
            owner: fs::metadata(store.dir())?.uid(),
            held: OnceLock::new(),
        })
    }

    /// Takes the lock, unless it is held already.
    ///
    /// # Errors
    ///
    /// When another agent drives the interface in this network namespace. A name that a user has
    /// taken who could not drive it counts for nothing: anybody could keep the agent from it.
    pub(crate) fn hold(&self) -> Result<(), Problem> {
        if self.held.get().is_some() {
            return Ok(());
        }
        let socket = self.take().map_err(|error| {
            let words = format!("cannot lock {}: {error}", self.interface);
            self.problem(words, None)
        })?;
        // Nobody else sets it: one loop asks.
        let _ = self.held.set(match socket {
            Taken::Here(socket) => Some(socket),
            Taken::ByStranger(process, user) => {
                warn!(
                    process,
                    %user,
                    "another user holds the lock of {}, and is passed over",
                    self.interface
                );
                None
            }
            Taken::ByAgent(process) => {
                let Self { interface, .. } = self;
                let words = format!(
                    "another agent (process {process}) drives {interface} here, so this one leaves \
                     it alone"
                );
                let remedy = format!(
                    "stop the other one (`systemctl status {process}` names its unit), or give \
                     this one another --interface"
                );
                return Err(self.problem(words, Some(remedy)));
            }
        });
        Ok(())
    }

    fn take(&self) -> io::Result<Taken> {
        let address = SocketAddr::from_abstract_name(format!("wattle-agent/{}", self.interface))?;
        match UnixListener::bind_addr(&address) {
            Ok(socket) => Ok(Taken::Here(socket)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&address)?;
                let holder = getsockopt(&holder, sockopt::PeerCredentials)?;
                let user = Uid::from_raw(holder.uid());
                let is_agent = user.is_root()
                    || user == geteuid()
                    || user.as_raw() == self.owner
                    || symptoms::has_net_admin(&holder.pid().to_string());
                Ok(if is_agent {
                    Taken::ByAgent(holder.pid())
                } else {
                    Taken::ByStranger(holder.pid(), user)
                })
            }
            Err(error) => Err(error),
        }
    }

    fn problem(&self, words: String, remedy: Option<String>) -> Problem {
        Problem {
            subject: self.interface.to_string(),
            remedy,
            lan: Some(LanEffect::Degraded),
            ..Problem::new(ProblemCode::NotApplied, words)
        }
    }
}

/// Who has the name of the lock.
enum Taken {
    Here(UnixListener),
    /// The agent that is this process.
    ByAgent(i32),
    /// A process of a user who could not be an agent.
    ByStranger(i32, Uid),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i2_one_agent_alone_drives_an_interface_until_it_ends() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let lock = |folder: &tempfile::TempDir, interface: &str| {
            let settings = Settings {
                interface: interface.parse().unwrap(),
                ..Settings::in_folder(folder.path())
            };
            InterfaceLock::new(&settings, &Store::open(folder.path()).unwrap()).unwrap()
        };
        let first = lock(&folders[0], "locktest0");
        first.hold().unwrap();
        first.hold().unwrap();
        let second = lock(&folders[1], "locktest0");
        let refused = second.hold().unwrap_err();
        assert!(
            refused.words.contains("drives locktest0 here"),
            "{refused:?}"
        );
        lock(&folders[1], "locktest1").hold().unwrap();
        drop(first);
        second.hold().unwrap();
    }
}
