//! Forwarding of packets between interfaces: switches under `/proc/sys`.

use std::{collections::BTreeSet, fs, io, path::PathBuf};

use anyhow::{Context, bail};
use wattle_mesh::host::state::Family;

use super::owned::{OwnedStore, OwnedSysctl};

/// Families that the host forwards.
pub(super) fn observe() -> anyhow::Result<BTreeSet<Family>> {
    let mut forwarded = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        if read(switch(family))?.is_some_and(|value| value != "0") {
            forwarded.insert(family);
        }
    }
    Ok(forwarded)
}

/// Switches forwarding on, and remembers what it was.
pub(super) fn enable(family: Family, owned: &OwnedStore) -> anyhow::Result<()> {
    if family == Family::V6 {
        keep_router_advertisements(owned)?;
    }
    match read(switch(family))? {
        Some(value) if value != "0" => Ok(()),
        Some(value) => set(switch(family), &value, "1", owned),
        None => bail!(
            "this host does not have this address family: there is no {}",
            file(switch(family)).display()
        ),
    }
}

/// To be called before an interface of the kernel's WireGuard goes up: as it does, the kernel
/// switches ICMP redirects off on the whole host (`wg_open` in `drivers/net/wireguard/device.c`),
/// so that is of the agent's making too.
pub(super) fn remember_redirects(owned: &OwnedStore) -> anyhow::Result<()> {
    let path = "net/ipv4/conf/all/send_redirects";
    match read(path)? {
        Some(value) if value != "0" => remember(path, &value, "0", owned),
        _ => {}
    }
    Ok(())
}

/// Sets back what the agent set and nobody has changed since, last first. Says in words what.
pub(super) fn restore(made: &[OwnedSysctl]) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    for sysctl in made.iter().rev() {
        if read(&sysctl.path)?.is_some_and(|value| value == sysctl.set_to) {
            write(&sysctl.path, &sysctl.before)?;
            done.push(format!(
                "set {} back to {}",
                sysctl.path.replace('/', "."),
                sysctl.before
            ));
        }
    }
    Ok(done)
}

/// A host that forwards IPv6 drops the default routes that routers advertised to it and takes no
/// more of them, unless `accept_ra` is 2 (Documentation/networking/ip-sysctl.rst): a host that has
/// its way to the internet from them would lose it.
fn keep_router_advertisements(owned: &OwnedStore) -> anyhow::Result<()> {
    let Ok(interfaces) = fs::read_dir(file("net/ipv6/conf")) else {
        return Ok(());
    };
    for interface in interfaces.flatten() {
        let name = interface.file_name();
        let Some(name) = name
            .to_str()
            .filter(|name| !["all", "default", "lo"].contains(name))
        else {
            continue;
        };
        let path = format!("net/ipv6/conf/{name}/accept_ra");
        if read(&path)?.as_deref() == Some("1") {
            set(&path, "1", "2", owned)?;
        }
    }
    Ok(())
}

fn switch(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

/// Remembers first: a crash in between restores what is still so.
fn set(path: &str, before: &str, to: &str, owned: &OwnedStore) -> anyhow::Result<()> {
    remember(path, before, to, owned);
    write(path, to)
}

fn remember(path: &str, before: &str, to: &str, owned: &OwnedStore) {
    owned.change(|made| {
        // A second time keeps what it was before the first.
        if !made.sysctls.iter().any(|known| known.path == path) {
            made.sysctls.push(OwnedSysctl {
                path: path.to_owned(),
                before: before.to_owned(),
                set_to: to.to_owned(),
            });
        }
    });
}

/// The value; nothing means there is no such switch.
fn read(path: &str) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(file(path)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file(path).display())),
    }
}

fn write(path: &str, value: &str) -> anyhow::Result<()> {
    let written = fs::write(file(path), value).map_err(super::explained);
    written.with_context(|| format!("cannot write {value} to {}", file(path).display()))
}

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}
