//! Finds the programs of an installed Postgres.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::bail;

/// The oldest major version that the schema is tested with.
const OLDEST: u32 = 15;

/// The folder of `initdb` and `postgres`, and their major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    pub(crate) folder: PathBuf,
    pub(crate) major: u32,
}

impl Binaries {
    pub(crate) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }
}

/// The installed Postgres that fits the cluster, or the first that is new enough when there is no
/// cluster yet.
pub(crate) fn find(cluster: Option<u32>) -> anyhow::Result<Binaries> {
    choose(
        &candidates(env::var_os("PATH").as_deref(), Path::new("/usr")),
        cluster,
    )
}

/// `setpriv` of util-linux, which can tie the life of a process to that of another.
pub(crate) fn setpriv() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/bin".into(), "/bin".into()])
        .map(|folder| folder.join("setpriv"))
        .find(|file| file.is_file())
}

fn choose(candidates: &[PathBuf], cluster: Option<u32>) -> anyhow::Result<Binaries> {
    let installed: Vec<_> = candidates
        .iter()
        .filter_map(|folder| {
            Some(Binaries {
                folder: folder.clone(),
                major: major_version(folder)?,
            })
        })
        .collect();
    let fitting = installed
        .iter()
        .find(|binaries| cluster.map_or(binaries.major >= OLDEST, |major| binaries.major == major));
    if let Some(binaries) = fitting {
        return Ok(binaries.clone());
    }
    if let Some(major) = cluster {
        bail!(
            "the data directory was made by Postgres {major}, which is not installed any more: \
             install postgresql-{major} (Debian, Ubuntu) or postgresql{major}-server (RPM), or \
             give --database-url"
        );
    }
    bail!(
        "found no Postgres {OLDEST} or newer. Install it (Debian, Ubuntu: apt-get install \
         postgresql; Fedora, RHEL: dnf install postgresql-server), or set --database-url \
         (DATABASE_URL) to one that runs already"
    );
}

/// Folders with both programs: those of the search path, then where Debian and the RPM packages put
/// them, the newest first.
fn candidates(path: Option<&OsStr>, usr: &Path) -> Vec<PathBuf> {
    let on_path = path
        .map(|path| env::split_paths(path).collect::<Vec<_>>())
        .unwrap_or_default();
    let mut packaged: Vec<(u32, PathBuf)> = subfolders(&usr.join("lib/postgresql"), "");
    packaged.extend(subfolders(usr, "pgsql-"));
    packaged.sort_by(|a, b| b.cmp(a));
    let packaged = packaged.into_iter().map(|(_, folder)| folder.join("bin"));
    on_path
        .into_iter()
        .chain(packaged)
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .collect()
}

fn subfolders(parent: &Path, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(parent) else {
        return Vec::new();
    };
    let version = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .to_str()?
            .strip_prefix(prefix)?
            .parse()
            .ok()
    };
    entries
        .flatten()
        .filter_map(|entry| Some((version(&entry)?, entry.path())))
        .collect()
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` gives 15.
fn major_version(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres"))
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn install(usr: &Path, folder: &str, version: &str) -> PathBuf {
        let bin = usr.join(folder);
        fs::create_dir_all(&bin).unwrap();
        for name in ["initdb", "postgres"] {
            let file = bin.join(name);
            fs::write(
                &file,
                format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n"),
            )
            .unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        bin
    }

    #[test]
    fn the_newest_package_is_taken_and_an_existing_cluster_keeps_its_version() {
        let usr = tempfile::tempdir().unwrap();
        let fifteen = install(
            usr.path(),
            "lib/postgresql/15/bin",
            "15.18 (Debian 15.18-0+deb12u1)",
        );
        let nine = install(usr.path(), "lib/postgresql/9/bin", "9.6");
        let seventeen = install(usr.path(), "pgsql-17/bin", "17beta1");
        let found = candidates(None, usr.path());
        assert_eq!(found, [seventeen.clone(), fifteen.clone(), nine]);
        assert_eq!(
            choose(&found, None).unwrap(),
            Binaries {
                folder: seventeen,
                major: 17
            }
        );
        assert_eq!(
            choose(&found, Some(15)).unwrap(),
            Binaries {
                folder: fifteen,
                major: 15
            }
        );
    }

    #[test]
    fn without_a_postgres_the_operator_reads_what_to_install() {
        let usr = tempfile::tempdir().unwrap();
        let words = choose(&candidates(None, usr.path()), None)
            .unwrap_err()
            .to_string();
        for part in [
            "apt-get install postgresql",
            "dnf install postgresql-server",
            "DATABASE_URL",
        ] {
            assert!(words.contains(part), "{words}");
        }
        assert!(
            choose(&[], Some(16))
                .unwrap_err()
                .to_string()
                .contains("Postgres 16")
        );
    }
}
