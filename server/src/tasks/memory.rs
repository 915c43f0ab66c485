//! Gives memory back to the system that is not used any more.

use std::time::Duration;

#[cfg(target_env = "gnu")]
use nix::libc;
use tokio::time::sleep;

/// How often memory is given back. It takes as long as there is much that is free.
const INTERVAL: Duration = Duration::from_secs(10);

/// Gives back what is free. The allocator by itself gives back only what lies at the end, and after
/// a flood of requests that is little.
pub async fn give_back() {
    loop {
        sleep(INTERVAL).await;
        trim();
    }
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate has this call")]
fn trim() {
    // SAFETY: it takes a number and touches only what the allocator has.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back what is free by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
