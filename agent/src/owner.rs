//! Which rights the agent has, and as whom it works: a command that root types works as the user whose
//! state folder it is, with the rights that the agent needs.

use std::path::Path;

use anyhow::Context;
use nix::unistd::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set,
    set_capabilities, set_keep_capabilities,
};
use wattle_program::owner::{become_user, other_owner};

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
    let Some((user, group)) = other_owner(folder)? else {
        return Ok(());
    };
    // Nothing that the command starts may be more than the user is, but for these two.
    set_keep_capabilities(true)?;
    become_user(user, group)?;
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
