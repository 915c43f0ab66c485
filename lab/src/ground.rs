//! What moves the packets under the tests.

use std::{fmt, process::Command};

use anyhow::{Result, bail};

use wattle_wire::report::DeviceKind;

use crate::{enter, process};

/// The job that looks for it, inside.
pub const PROBE: &str = "probe";

/// Who moves WireGuard's packets on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    Kernel,
    Userspace,
}

impl Ground {
    /// Looks, in namespaces of its own.
    pub fn find() -> Result<Self> {
        let output = process::output(&mut enter::command(PROBE)?, None)?;
        let log = String::from_utf8_lossy(&output.stderr);
        match (output.status.code(), enter::explain(&log)) {
            (_, Some(why)) => bail!("{why}; {}", log.trim()),
            (Some(0), _) => Ok(Self::Kernel),
            (Some(1), _) if log.contains(NO_MODULE) => Ok(Self::Userspace),
            _ => bail!("cannot make a lab here: {}; {}", output.status, log.trim()),
        }
    }

    /// Looks from inside a lab.
    pub fn find_here() -> Result<Self> {
        match probe() {
            Ok(()) => Ok(Self::Kernel),
            Err(error) if error.to_string().contains(NO_MODULE) => Ok(Self::Userspace),
            Err(error) => Err(error),
        }
    }

    /// As agents report it.
    pub fn device(self) -> DeviceKind {
        match self {
            Self::Kernel => DeviceKind::Kernel,
            Self::Userspace => DeviceKind::Userspace,
        }
    }
}

/// What `ip` says where the kernel has no such device.
const NO_MODULE: &str = "Unknown device type";

/// The job [`PROBE`]: fails where the kernel has no WireGuard.
pub fn probe() -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["link", "add", "probe", "type", "wireguard"]);
    process::run(ip, None)?;
    let mut ip = Command::new("ip");
    ip.args(["link", "del", "probe"]);
    process::run(ip, None).map(drop)
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel module",
            Self::Userspace => "userspace device",
        })
    }
}
