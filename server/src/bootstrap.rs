//! The first start: the mesh gets its row, and its owner an api token. There is no default secret
//! anywhere.

mod queries;

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use wattle_wire::{
    admin::{NewApiToken, Role},
    ids::MeshId,
};

use crate::{
    data_dir::{PRIVATE, token_file, write_whole},
    db::Db,
    routes::api_tokens,
    secret::{self, ApiCredential},
    state::coordinators::CoordinatorAddress,
};

/// What the database knows of the mesh that stays as it is.
pub struct MeshIdentity {
    pub id: MeshId,
    pub challenge_secret: [u8; 32],
}

impl std::fmt::Debug for MeshIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeshIdentity")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// Reads the mesh's row, and makes it if this is the first start of all coordinators on this
/// database.
///
/// # Errors
///
/// When the database cannot be reached, or a coordinator would be in the prefix of the tunnels.
pub async fn ensure_mesh(
    db: &Db,
    data_dir: &Path,
    tunnel_prefix: IpNet,
    coordinators: &BTreeSet<CoordinatorAddress>,
) -> anyhow::Result<MeshIdentity> {
    let mut transaction = db.begin().await.context("cannot reach the database")?;
    if queries::insert_mesh(&mut transaction, tunnel_prefix, secret::random()?).await? {
        for at in coordinators {
            let (address, host) = (at.address, at.host.as_deref().unwrap_or_default());
            ensure!(
                !at.is_in(tunnel_prefix),
                "--tunnel-prefix {tunnel_prefix} holds {address}, where agents look for the \
                 coordinator ({host}): choose another prefix for the tunnels"
            );
        }
        let token = ApiCredential::fresh()?;
        let owner = NewApiToken {
            name: "first start".to_owned(),
            role: Role::Owner,
            expires_in_s: None,
        };
        api_tokens::queries::insert(&mut transaction, &token, &owner).await?;
        // Before the commit: a mesh without its owner's token would be locked.
        let file = token_file(data_dir);
        write_whole(&file, &format!("{}\n", token.reveal()), PRIVATE)
            .with_context(|| format!("cannot write {}", file.display()))?;
        tracing::info!(file = %file.display(), "made a new mesh; its owner's api token is in the \
            file");
    }
    transaction
        .commit()
        .await
        .context("cannot reach the database")?;
    let mesh = queries::mesh(&mut *db.begin().await?).await?;
    Ok(mesh)
}
