//! What the coordinator does by itself, beside answering requests.

pub mod endpoint_check;
