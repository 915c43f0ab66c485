//! Wattle's coordinator: sites, keys and subnets in Postgres, REST for people and scripts, and a
//! stream to each agent.
//!
//! The modules in their order; each uses only those below it:
//!
//! | module | holds |
//! |---|---|
//! | [`server`], [`bootstrap`] | a coordinator from its start to its end; the first start of a mesh |
//! | [`router`] | every route, and what it takes to call it |
//! | [`routes`] | a module for each resource: handlers, checks, and SQL in `queries` |
//! | [`tasks`] | what the coordinator does by itself |
//! | [`http`] | connections, credentials, bodies, pages, conditional requests, the web page |
//! | [`state`] | what all requests share: the mesh in memory, links, reports, streams |
//! | [`tls`] | the mesh's certificate authority and the certificate of this coordinator |
//! | [`db`] | connections, and `mutate`, through which every change goes |
//! | [`postgres`] | a private Postgres, where no other is given |
//! | [`config`] | command line, environment and file of settings |
//! | [`healthcheck`] | asks the coordinator on this host whether it is ready |
//! | [`error`], [`mutation`], [`secret`], [`data_dir`], [`fingerprint`] | what the others share |

pub mod bootstrap;
pub mod config;
pub mod data_dir;
pub mod db;
pub mod error;
pub mod fingerprint;
pub mod healthcheck;
pub mod http;
pub mod mutation;
pub mod postgres;
pub mod router;
pub mod routes;
pub mod secret;
pub mod server;
pub mod state;
pub mod tasks;
mod text;
pub mod tls;
