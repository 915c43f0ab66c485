//! How the allocator keeps memory that is not used any more.

#[cfg(target_env = "gnu")]
use nix::libc;

/// Has the allocator give back to the system what is free, at the end of a heap and of large
/// blocks; with `one_heap`, all threads share one.
///
/// By itself glibc keeps a heap for each thread, and keeps in it what large messages took for a
/// moment. Threads that move packets keep their own, so that they do not wait for each other. Call
/// it before there are other threads.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "no crate has this call")]
pub(crate) fn keep_little(one_heap: bool) {
    // glibc's default, which setting it keeps from growing with each large block.
    const KEPT_BYTES: libc::c_int = 128 << 10;
    // The buffers of a device have 64 KiB.
    const LARGE_BYTES: libc::c_int = 32 << 10;
    // SAFETY: it takes numbers and touches only what the allocator has.
    unsafe {
        if one_heap {
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Other allocators give back what is free by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn keep_little(_: bool) {}
