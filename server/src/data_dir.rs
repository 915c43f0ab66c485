//! The data directory, and how files are written in it.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Mode of a file that only its owner reads.
pub(crate) const PRIVATE: u32 = 0o600;
/// Mode of a file that everybody reads.
pub(crate) const PUBLIC: u32 = 0o644;

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

/// Writes a file with a mode, whole or not at all.
pub(crate) fn write_whole(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(content.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    fs::File::open(folder)?.sync_all()
}
