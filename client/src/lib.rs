//! What every client of a coordinator needs: [`pin`] says whom it takes for one, and [`secrets`]
//! draws what nobody should guess.

pub mod pin;
pub mod secrets;
