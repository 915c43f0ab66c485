//! Gives memory back to the system that is not used any more.

use std::time::Duration;

#[cfg(target_env = "gnu")]
use nix::libc;
use tokio::time::sleep;

/// How often memory is given back. It takes as long as there is much that is free.
const INTERVAL: Duration = Duration::from_secs(10);

/// Has the allocator give back at once what is free at the end, and keep no more of it after each
/// large block. Call it before there are other threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate has this call")]
pub fn keep_little() {
    // glibc's default, which setting it keeps from growing.
    const KEPT_BYTES: libc::c_int = 128 << 10;
    // SAFETY: it takes numbers and touches only what the allocator has.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Other allocators give back what is free by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn keep_little() {}

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

#[cfg(not(target_env = "gnu"))]
fn trim() {}
