//! A command that root types works as the user whose folder it is.
//!
//! The program of a unit runs as its own user, and cannot read what root writes. The folder is never
//! given to somebody else instead: whoever owns it may have put links into it, and root would follow
//! them.

use std::{ffi::CString, fs, io, os::unix::fs::MetadataExt, path::Path};

use anyhow::Context;
use nix::unistd::{Gid, Uid, User, geteuid, initgroups, setgid, setgroups, setuid};

/// Whose folder it is, if this process is root's and the folder is not. `None` for one that is not
/// there: it will be of whoever makes it.
///
/// # Errors
///
/// When the folder cannot be looked at.
pub fn other_owner(folder: &Path) -> anyhow::Result<Option<(Uid, Gid)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let owner = match fs::metadata(folder) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot look at {}", folder.display()));
        }
    };
    let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
    Ok((!user.is_root()).then_some((user, group)))
}

/// Makes this process one of a user, with the groups of that user. To be called while the process has
/// one thread.
///
/// # Errors
///
/// When it may not.
pub fn become_user(user: Uid, group: Gid) -> anyhow::Result<()> {
    let switched = || -> nix::Result<()> {
        match User::from_uid(user)? {
            Some(account) => initgroups(&CString::new(account.name).unwrap_or_default(), group)?,
            None => setgroups(&[group])?,
        }
        setgid(group)?;
        setuid(user)
    };
    switched().with_context(|| format!("cannot become user {user}"))
}
