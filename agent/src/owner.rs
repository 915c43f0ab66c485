//! A command that root runs works as the user whose state folder it is.
//!
//! The agent of the systemd unit runs as its own user, and cannot read what root writes. The folder
//! is never given to somebody else instead: whoever owns it may have put links into it, and root
//! would follow them.

use std::{ffi::CString, fs, io, os::unix::fs::MetadataExt, path::Path};

use anyhow::Context;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    set_capabilities, set_keep_capabilities,
};

/// What is kept: the interface and the rules are set with the one, echo requests are sent with the
/// other.
const KEPT: [CapabilitySet; 2] = [CapabilitySet::NET_ADMIN, CapabilitySet::NET_RAW];

/// Makes this process, if it is root's, one of the user who owns the folder. A folder that is not
/// there will be of whoever makes it. To be called while the process has one thread.
///
/// Another user's process takes up what the program's file lets it have. What a unit gives it, it has.
pub(crate) fn become_owner(folder: &Path) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        let own = capabilities(None)?;
        let may_have = |kept| own.permitted.contains(kept) && !own.effective.contains(kept);
        return match KEPT.into_iter().any(may_have) {
            true => keep_rights().context("cannot take up the rights of this program"),
            false => Ok(()),
        };
    }
    let owner = match fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", folder.display()));
        }
    };
    let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    if user.is_root() {
        return Ok(());
    }
    switch(user, group).with_context(|| {
        format!(
            "cannot become the owner of {}, user {user}",
            folder.display()
        )
    })
}

fn switch(user: Uid, group: Gid) -> anyhow::Result<()> {
    // Nothing that the command starts may be more than the user is, but for these two.
    set_keep_capabilities(true)?;
    match User::from_uid(user)? {
        Some(account) => initgroups(&CString::new(account.name)?, group)?,
        None => setgroups(&[group])?,
    }
    setgid(group)?;
    setuid(user)?;
    set_keep_capabilities(false)?;
    Ok(keep_rights()?)
}

/// Keeps some rights of this process, for itself and the programs that it starts, and no other.
fn keep_rights() -> rustix::io::Result<()> {
    let had = capabilities(None)?.permitted;
    let kept = KEPT.into_iter().filter(|kept| had.contains(*kept));
    let all = kept.clone().collect();
    set_capabilities(
        None,
        CapabilitySets {
            effective: all,
            permitted: all,
            inheritable: all,
        },
    )?;
    // For nft and the userspace device, which are programs of their own.
    for kept in kept {
        configure_capability_in_ambient_set(kept, true)?;
    }
    Ok(())
}
