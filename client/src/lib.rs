//! What every client of a coordinator needs: [`pin`] says whom it takes for one, and [`kem`] draws
//! the secrets of preshared keys.

pub mod kem;
pub mod pin;
