//! Certificates: the mesh's own authority, and what this coordinator shows.

pub mod authority;
pub mod certificate;
