//! Files of the state directory: private, and replaced whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Serialize, de::DeserializeOwned};

/// How the files of a state directory are written. A greater number says that a program that knows
/// only lesser ones must not touch them.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";

/// The state directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// Held by the one `run` of a state directory, for as long as it lives.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl Store {
    /// Opens the state directory, and makes it if it is not there.
    ///
    /// # Errors
    ///
    /// Also when a newer program has written there in a format that this one does not know.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| {
                format!(
                    "cannot make the state directory {}; run as root, or name \
                another with --state-dir",
                    dir.display()
                )
            })?;
        let store = Self {
            dir: dir.to_owned(),
        };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> anyhow::Result<()> {
        let found = self.read::<u32>(FORMAT_FILE)?;
        match found {
            Some(newer) if newer > FORMAT => bail!(
                "the state in {} has format {newer}, which a newer wattle-agent wrote; this one, \
                 {}, knows formats up to {FORMAT} and changes nothing there. Install the newer \
                 one again, or restore a copy of the state directory from before the upgrade",
                self.dir.display(),
                env!("CARGO_PKG_VERSION")
            ),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads a file; `None` if there is none. A file that others may read is made private first: it
    /// may hold a key.
    pub(crate) fn read<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<Option<T>> {
        self.read_with(name, |text| serde_json::from_slice(text))
    }

    /// As [`Store::read`], of a file that is more than one value of a type.
    pub(crate) fn read_with<T>(
        &self,
        name: &str,
        decode: impl Fn(&[u8]) -> serde_json::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        let path = self.path(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                let hint = if error.kind() == ErrorKind::PermissionDenied {
                    "; run this as root"
                } else {
                    ""
                };
                return Err(error).with_context(|| format!("cannot read {}{hint}", path.display()));
            }
        };
        let mode = fs::metadata(&path)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{:o}", mode & 0o777), "others \
                could read this file; it is private again");
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        }
        // The error names a line and column, never the content.
        let value = decode(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(value))
    }

    /// Replaces a file: written beside it, synced, renamed over it, and the directory synced, so
    /// that a crash leaves the old or the new.
    pub(crate) fn write<T: Serialize>(&self, name: &str, value: &T) -> anyhow::Result<()> {
        let path = self.path(name);
        self.replace(&path, &serde_json::to_vec(value)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// As [`Store::read`]. If the file is damaged, the one before it takes its place, if
    /// [`Store::write_keeping_previous`] kept it.
    pub(crate) fn read_or_previous<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> anyhow::Result<Option<T>> {
        self.read_or_previous_with(name, |text| serde_json::from_slice(text))
    }

    /// As [`Store::read_with`] and [`Store::read_or_previous`].
    pub(crate) fn read_or_previous_with<T>(
        &self,
        name: &str,
        decode: impl Fn(&[u8]) -> serde_json::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        match self.read_with(name, &decode) {
            Err(error)
                if error.is::<serde_json::Error>()
                    && fs::rename(self.previous(name), self.path(name)).is_ok() =>
            {
                tracing::warn!("{error:#}: using the previous version of the file");
                self.read_with(name, &decode)
            }
            result => result,
        }
    }

    /// As [`Store::write`]; the file of before stays beside it.
    pub(crate) fn write_keeping_previous<T: Serialize>(
        &self,
        name: &str,
        value: &T,
    ) -> anyhow::Result<()> {
        let previous = self.previous(name);
        let _ = fs::remove_file(&previous);
        // The first time there is none to keep.
        let _ = fs::hard_link(self.path(name), previous);
        self.write(name, value)
    }

    /// Removes a file and the one that was kept of before.
    pub(crate) fn remove_with_previous(&self, name: &str) -> anyhow::Result<()> {
        let _ = fs::remove_file(self.previous(name));
        self.remove(name)
    }

    fn previous(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.previous"))
    }

    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path(name).display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes sure that one agent alone runs on this state directory.
    pub(crate) fn lock(&self) -> anyhow::Result<RunLock> {
        match self.try_lock()? {
            Some(lock) => Ok(lock),
            None => {
                bail!(
                    "another wattle-agent runs on {}; stop it first",
                    self.dir.display()
                )
            }
        }
    }

    /// Whether an agent runs on this state directory.
    pub(crate) fn is_locked(&self) -> anyhow::Result<bool> {
        Ok(self.try_lock()?.is_none())
    }

    /// Waits for a lock that is held for moments only.
    pub(crate) fn wait_for(&self, name: &str) -> anyhow::Result<File> {
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path(name));
        let file = opened.with_context(|| format!("cannot open {}", self.path(name).display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", self.path(name).display()))?;
        Ok(file)
    }

    /// It is the directory itself that is locked: a disk that is full or may not be written keeps
    /// no agent from starting.
    fn try_lock(&self) -> anyhow::Result<Option<RunLock>> {
        let opened = File::open(&self.dir);
        let file = opened.with_context(|| format!("cannot open {}", self.dir.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", self.dir.display()))
            }
        }
    }

    /// The first file that is written is the one that says how the others are written.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let format = self.path(FORMAT_FILE);
        if !format.exists() {
            self.put(&format, FORMAT.to_string().as_bytes())?;
        }
        self.put(path, content)
    }

    fn put(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // Private from the first moment: tempfile makes files with mode 0600.
        // Its error has the random name of the file: each would be another problem to be told.
        let made = tempfile::NamedTempFile::new_in(&self.dir);
        let mut file = made.map_err(|error| io::Error::from(error.kind()))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h3_files_are_private_and_made_private_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        store.write("x.json", &"value").unwrap();
        let path = store.path("x.json");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            store.read::<String>("x.json").unwrap(),
            Some("value".to_owned())
        );
        assert_eq!(mode(), 0o600);
        assert_eq!(
            fs::metadata(store.dir()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn h8_state_of_a_newer_format_is_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write("x.json", &1).unwrap();
        assert_eq!(fs::read_to_string(store.path(FORMAT_FILE)).unwrap(), "1");
        fs::write(store.path(FORMAT_FILE), "2").unwrap();
        let before = fs::read_dir(dir.path()).unwrap().count();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("has format 2, which a newer wattle-agent wrote"),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
        fs::write(store.path(FORMAT_FILE), "1").unwrap();
        Store::open(dir.path()).unwrap();
    }

    #[test]
    fn h3_a_damaged_file_is_an_error_and_a_missing_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read::<String>("x.json").unwrap(), None);
        fs::write(store.path("x.json"), "{").unwrap();
        assert!(
            format!("{:#}", store.read::<String>("x.json").unwrap_err()).contains("is damaged")
        );
    }

    #[test]
    fn h3_a_damaged_file_gives_way_to_the_one_before_and_that_is_never_lost_to_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let read = || store.read_or_previous::<u32>("x.json");
        assert_eq!(read().unwrap(), None);
        for number in 1..=3 {
            store.write_keeping_previous("x.json", &number).unwrap();
        }
        assert_eq!(read().unwrap(), Some(3));
        for damage in ["", "{", "\"three\""] {
            fs::write(store.path("x.json"), damage).unwrap();
            assert_eq!(read().unwrap(), Some(2), "{damage:?}");
            store.write_keeping_previous("x.json", &3).unwrap();
        }
        fs::write(store.path("x.json"), "").unwrap();
        fs::remove_file(store.previous("x.json")).unwrap();
        assert!(format!("{:#}", read().unwrap_err()).contains("is damaged"));
        store.write_keeping_previous("x.json", &4).unwrap();
        store.write_keeping_previous("x.json", &5).unwrap();
        store.remove_with_previous("x.json").unwrap();
        assert_eq!(read().unwrap(), None);
        assert!(!store.previous("x.json").exists());
    }

    #[test]
    fn h4_one_agent_alone_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let held = store.lock().unwrap();
        assert!(store.is_locked().unwrap());
        assert!(store.lock().is_err());
        drop(held);
        assert!(!store.is_locked().unwrap());
    }
}
