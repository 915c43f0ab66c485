//! Every decision of Wattle, as pure functions: no runtime, clock, SQL, sockets, files or randomness; time and random numbers are arguments.

pub mod state;
