//! The first start: the mesh gets its row, and its owner an api token. There is no default secret
//! anywhere.

mod queries;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;
use ipnet::IpNet;
use wattle_wire::{
    admin::{NewApiToken, Role},
    ids::MeshId,
};

use crate::{
    db::Db,
    routes::api_tokens,
    secret::{self, ApiToken},
};

/// What the database knows of the mesh that stays as it is.
pub struct Mesh {
    pub id: MeshId,
    pub challenge_secret: [u8; 32],
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The file of the owner's api token.
pub fn token_file(data_dir: &Path) -> PathBuf {
    data_dir.join("api-token")
}

/// Makes the data directory. Others may pass through, so that the account of a private Postgres
/// reaches its folder, but not look.
pub fn make_data_dir(data_dir: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(data_dir);
    made.with_context(|| format!("cannot make {}", data_dir.display()))
}

/// Reads the mesh's row, and makes it if this is the first start of all coordinators on this
/// database.
pub async fn ensure_mesh(db: &Db, data_dir: &Path, tunnel_prefix: IpNet) -> anyhow::Result<Mesh> {
    let mut transaction = db.begin().await.context("cannot reach the database")?;
    if queries::insert_mesh(&mut transaction, tunnel_prefix, secret::random()?).await? {
        let token = ApiToken::fresh()?;
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

/// Mode of a file that only its owner reads.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of a file that everybody reads.
pub(crate) const PUBLIC: u32 = 0o644;

/// Writes a file with a mode, whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&unfinished)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    path.parent()
        .map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}
