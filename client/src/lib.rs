//! What every client of a coordinator needs: [`pin`] says whom it takes for one.

pub mod pin;
