//! How the allocator keeps memory that is not used any more.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Has all threads share one heap, and gives back to the system what is free at its end.
///
/// By itself glibc keeps a heap for each thread, and keeps in it what large messages took for a
/// moment. Call it before there are other threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate has this call")]
pub(crate) fn keep_little() {
    // glibc's default, which setting it keeps from growing with each large block.
    const KEPT_BYTES: libc::c_int = 128 << 10;
    // SAFETY: it takes numbers and touches only what the allocator has.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Other allocators give back what is free by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_little() {}
