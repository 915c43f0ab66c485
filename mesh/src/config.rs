//! What the coordinator knows of the mesh, what it tells each node, and what a change would do.

pub mod allocate;
pub mod directory;
pub mod endpoint_check;
pub mod epochs;
pub mod feed;
pub mod impact;
pub mod view;
pub mod wg_quick;
