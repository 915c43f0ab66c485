//! What a change would do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    admin::site::{Site, SiteNode, Warning},
    name::Name,
};

/// Answer to a change with `?dry_run=true`: what it would have done. Nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DryRun {
    /// The action as the audit log would name it, for example `site.change`; null when all is
    /// already as it should be.
    pub would: Option<String>,
    /// The sites it would make or change, as they would be. A new site gets another id when it is
    /// really made.
    pub sites: Vec<Site>,
    /// The nodes it would make or change, as their sites would list them.
    pub nodes: Vec<SiteNode>,
    /// What would become of links.
    pub links: LinkEffects,
    pub warnings: Vec<Warning>,
}

/// What a change does to links.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkEffects {
    pub added: SomeLinks,
    pub removed: SomeLinks,
    /// Links for which an end gets a different configuration.
    pub changed: SomeLinks,
}

/// Links; only the first 1,000 are named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SomeLinks {
    pub count: usize,
    /// The names of both nodes of each of the first 1,000.
    pub nodes: Vec<[Name; 2]>,
}

impl SomeLinks {
    pub const MOST: usize = 1_000;
}
