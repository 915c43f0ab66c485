//! The tables of iptables-legacy, which nft does not list. Its own programs need more rights than
//! the agent has, so the kernel is asked as they ask it: by options of a socket.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use serde_json::Value;
use tokio::task::spawn_blocking;
use wattle_mesh::{
    diagnose::firewall::legacy::{self, LegacyDump, LegacyTable},
    host::state::Family,
};

use super::nft;

/// `IPT_SO_GET_INFO` and `IPT_SO_GET_ENTRIES`, the same for IPv6.
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// What is before the entries in `struct ipt_get_entries`: the name of the table, which has 32
/// bytes, and their length.
const HEAD_LEN: usize = 40;
const LEN_AT: usize = 32;
/// Larger tables are not read.
const LONGEST: usize = 64 << 20;
/// A table may change between the questions for it, so often in a row.
const ATTEMPTS: usize = 5;

/// Whether this kernel has tables of iptables-legacy, used or not.
pub(crate) fn is_possible() -> bool {
    [Family::V4, Family::V6]
        .into_iter()
        .any(|family| Path::new(names_file(family)).exists())
}

/// Adds what iptables-legacy has to nft's ruleset.
pub(super) async fn add_to(ruleset: &mut Value) -> anyhow::Result<()> {
    let mut hooks = None;
    for family in [Family::V4, Family::V6] {
        // No other table may be read, because reading makes it.
        let tables = match fs::read_to_string(names_file(family)) {
            Ok(names) => legacy::listed(&names),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // Root alone may read it.
            Err(_) => {
                let hooks = match &hooks {
                    Some(hooks) => hooks,
                    // An older nft knows of none.
                    None => hooks.insert(nft::hooks().await.unwrap_or_default()),
                };
                legacy::hooked(family, hooks, ruleset, has_nat_module(family)).context(
                    "`nft list hooks` does not say whether there are any. That takes nftables 1.0 \
                     and a kernel with CONFIG_NETFILTER_NETLINK_HOOK",
                )?
            }
        };
        for table in tables {
            let read = spawn_blocking(move || read(family, table)).await?;
            let objects = read.with_context(|| format!("its table {}", table.name()))?;
            if let Some(all) = ruleset["nftables"].as_array_mut() {
                all.extend(objects);
            }
        }
    }
    Ok(())
}

/// Lists the tables in use; a kernel without iptables-legacy does not have it.
fn names_file(family: Family) -> &'static str {
    match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    }
}

fn has_nat_module(family: Family) -> bool {
    let module = match family {
        Family::V4 => "/sys/module/iptable_nat",
        Family::V6 => "/sys/module/ip6table_nat",
    };
    Path::new(module).exists()
}

/// Chains and rules of a table.
pub(super) fn read(family: Family, table: LegacyTable) -> anyhow::Result<Vec<Value>> {
    let (address_family, level) = match family {
        Family::V4 => (AddressFamily::Inet, libc::SOL_IP),
        Family::V6 => (AddressFamily::Inet6, libc::SOL_IPV6),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(address_family, SockType::Datagram, flags, None)?;
    let asked = |option, value: &mut [u8]| ask(&socket, level, option, value);
    // The kernel would load the module of a table that is not there, if it was asked for this first.
    if asked(GET_ENTRIES, &mut named(table, HEAD_LEN)) == Err(Errno::ENOENT) {
        return Ok(Vec::new());
    }
    let asked_info = || {
        let mut info = named(table, LegacyDump::INFO_LEN);
        asked(GET_INFO, &mut info).map(|()| info)
    };
    for _ in 0..ATTEMPTS {
        let info = asked_info()?;
        let len = LegacyDump::entries_len(&info).context("the kernel's answer is too short")?;
        if len > LONGEST {
            bail!("it has {len} bytes");
        }
        let mut entries = named(table, HEAD_LEN + len);
        let len = u32::try_from(len)?.to_ne_bytes();
        entries[LEN_AT..LEN_AT + len.len()].copy_from_slice(&len);
        match asked(GET_ENTRIES, &mut entries) {
            // It has another length by now.
            Err(Errno::EAGAIN) => continue,
            answer => answer?,
        }
        if asked_info()? != info {
            continue;
        }
        let dump = LegacyDump {
            family,
            table,
            info: &info,
            entries: &entries[HEAD_LEN..],
        };
        return dump
            .objects()
            .context("the kernel's answer is not understood");
    }
    bail!("it changes all the time")
}

/// So many bytes, which begin with the name of a table.
fn named(table: LegacyTable, len: usize) -> Vec<u8> {
    let mut bytes = table.name().as_bytes().to_vec();
    bytes.resize(len, 0);
    bytes
}

/// Asks for an option of a socket whose value says what is asked for.
#[expect(
    unsafe_code,
    reason = "no crate knows options whose value is read, too"
)]
fn ask(socket: &OwnedFd, level: i32, option: i32, value: &mut [u8]) -> nix::Result<()> {
    let mut len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::E2BIG)?;
    // SAFETY: the kernel reads and writes `len` bytes of `value` at the most, and both outlive the
    // call.
    let code = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(code).map(drop)
}
