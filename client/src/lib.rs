//! Clients of a coordinator: [`node`] for gateways, [`operator`] for people's programs. Both speak
//! [`http`] to whom [`pin`] takes for one; [`secrets`] draws what nobody should guess.

mod clock;
pub mod error;
pub mod http;
mod messages;
pub mod node;
pub mod operator;
pub mod pin;
pub mod secrets;
