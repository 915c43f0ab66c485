//! The system's random numbers.

use anyhow::anyhow;
use aws_lc_rs::rand;
use zeroize::Zeroizing;

/// Bytes for a key, or for anything that nobody should guess.
pub(crate) fn bytes<const N: usize>() -> anyhow::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| anyhow!("the system has no random numbers"))?;
    Ok(bytes)
}
