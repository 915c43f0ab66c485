//! Numbers and names in the kernel's memory.

/// Some of its bytes. What is beyond their end is absent.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'b>(pub(super) &'b [u8]);

impl<'b> Bytes<'b> {
    pub(super) fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    pub(super) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_ne_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    pub(super) fn i32(self, at: usize) -> Option<i32> {
        self.array(at).map(i32::from_ne_bytes)
    }

    /// So many of the bytes.
    pub(super) fn part(self, at: usize, len: usize) -> Option<Self> {
        self.0.get(at..at.checked_add(len)?).map(Self)
    }

    /// A text, which ends where a zero is or after so many bytes.
    pub(super) fn text(self, at: usize, len: usize) -> Option<&'b str> {
        let bytes = self.part(at, len)?.0;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(len);
        str::from_utf8(bytes.get(..end)?).ok()
    }
}
