//! The folders of the private Postgres: whose they are, where its socket is, and who uses its data.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User, chown},
};

use super::{PORT, USER, binaries::Binaries};
use crate::first_start;

/// The longest path of a Unix socket, without its end.
const LONGEST_SOCKET_PATH: usize = 107;
/// How long a Postgres that lost its coordinator may take to stop.
const GONE_WITHIN: Duration = Duration::from_secs(15);

/// Where a private Postgres lives, and as whom.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    /// Its cluster.
    pub(crate) data: PathBuf,
    pub(crate) socket_folder: PathBuf,
    pub(crate) log: PathBuf,
    home: PathBuf,
    /// Postgres refuses to run as root: then as whom. `None` means: as whoever runs the coordinator.
    account: Option<(Uid, Gid)>,
}

impl Folder {
    /// Makes the folders below a data directory, private to the account that Postgres will run as.
    pub(crate) fn prepare(data_dir: &Path) -> anyhow::Result<Self> {
        first_start::make_data_dir(data_dir)?;
        let data_dir = fs::canonicalize(data_dir)?;
        let account = account()?;
        let home = data_dir.join("postgres");
        make_private(&home, account)?;
        if let Some((uid, gid)) = account {
            ensure_reachable(&home, uid, gid)?;
        }
        let socket_folder = socket_folder(&home)?;
        make_private(&socket_folder, account)?;
        Ok(Self { data: home.join("data"), socket_folder, log: home.join("log"), home, account })
    }

    /// The major version of the Postgres that made the cluster; `None` when there is none yet.
    pub(crate) fn major_version(&self) -> anyhow::Result<Option<u32>> {
        match fs::read_to_string(self.data.join("PG_VERSION")) {
            Ok(text) => Ok(Some(text.trim().parse().with_context(|| format!("{} holds no Postgres cluster", self.data.display()))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.data.display())),
        }
    }

    /// Makes the cluster if there is none. It appears whole or not at all.
    pub(crate) fn initialise(&self, binaries: &Binaries) -> anyhow::Result<()> {
        if self.data.exists() {
            return Ok(());
        }
        tracing::info!(folder = %self.data.display(), postgres = binaries.major, "makes a private Postgres cluster");
        let unfinished = self.home.join("data.tmp");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        let output = self
            .command(&binaries.initdb())
            .args(["-A", "trust", "-E", "UTF8", "--locale=C", "-U", USER, "-D"])
            .arg(&unfinished)
            .output()
            .context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        fs::rename(&unfinished, &self.data)?;
        fs::File::open(&self.home)?.sync_all()?;
        Ok(())
    }

    /// A command that runs as the account of Postgres, apart from the terminal's signals and from the environment of the coordinator.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir(&self.home).stdin(Stdio::null()).process_group(0);
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Waits until nobody uses the cluster any more, and stops who still does: the coordinator's lock is held, so they lost theirs.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + GONE_WITHIN;
        let mut told = false;
        loop {
            let users = users_of(&self.data);
            if users.is_empty() {
                break;
            }
            if let Some(postmaster) = PostmasterFile::read(&self.data).filter(|file| users.contains(&file.pid) && !told) {
                tracing::info!(pid = postmaster.pid, "stops the Postgres that a former coordinator left behind");
                let _ = kill(Pid::from_raw(postmaster.pid), Signal::SIGINT);
                told = true;
            }
            ensure!(Instant::now() < deadline, "processes {users:?} still use {}", self.data.display());
            thread::sleep(Duration::from_millis(20));
        }
        // Nobody is left, so the file is stale; its number may be that of a zombie or of a stranger by now, which Postgres would obey.
        match fs::remove_file(self.data.join("postmaster.pid")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("cannot remove a stale postmaster.pid"),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What Postgres said last.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

/// What Postgres writes into `postmaster.pid`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PostmasterFile {
    pub(crate) pid: i32,
    pub(crate) socket_folder: PathBuf,
    pub(crate) ready: bool,
}

impl PostmasterFile {
    pub(crate) fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<_> = text.lines().collect();
        Some(Self {
            pid: lines.first()?.trim().parse().ok()?,
            socket_folder: PathBuf::from(lines.get(4).copied().unwrap_or_default()),
            ready: lines.get(7).is_some_and(|state| state.trim() == "ready"),
        })
    }
}

/// The processes that work in a cluster: a postmaster and its children stay in its folder. Zombies do not count.
pub(crate) fn users_of(data: &Path) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // The folder of a zombie cannot be read.
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)).collect()
}

fn account() -> anyhow::Result<Option<(Uid, Gid)>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("cannot look up accounts")? {
            return Ok(Some((user.uid, user.gid)));
        }
    }
    bail!("Postgres does not run as root, and there is neither an account `postgres` nor `nobody`: run wattle-server as another user");
}

/// Makes a folder that only the account of Postgres can enter, or checks that an existing one is such.
fn make_private(folder: &Path, account: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            if let Some((uid, gid)) = account {
                chown(folder, Some(uid), Some(gid)).with_context(|| format!("cannot hand over {}", folder.display()))?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let metadata = fs::symlink_metadata(folder)?;
            let owner = account.map_or(Uid::effective(), |(uid, _)| uid);
            ensure!(
                metadata.is_dir() && metadata.uid() == owner.as_raw(),
                "{} does not belong to uid {owner}: remove it or give another --data-dir",
                folder.display()
            );
            fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot make {}", folder.display())),
    }
}

/// Says which folder on the way keeps the account of Postgres out, rather than letting Postgres fail in its own words.
fn ensure_reachable(home: &Path, uid: Uid, gid: Gid) -> anyhow::Result<()> {
    for ancestor in home.ancestors().skip(1) {
        let metadata = fs::metadata(ancestor)?;
        let needed = match () {
            () if metadata.uid() == uid.as_raw() => 0o100,
            () if metadata.gid() == gid.as_raw() => 0o010,
            () => 0o001,
        };
        ensure!(
            metadata.mode() & needed != 0,
            "Postgres does not run as root, and {} is closed to its account (uid {uid}): chmod o+x {0}, give another --data-dir, or run wattle-server as another user",
            ancestor.display()
        );
    }
    Ok(())
}

/// The folder of the socket: beside the data, or, where the path gets too long for a socket, a short one named after it.
fn socket_folder(home: &Path) -> anyhow::Result<PathBuf> {
    let length = |folder: &Path| folder.join(format!(".s.PGSQL.{PORT}")).as_os_str().len();
    let beside = home.join("run");
    if length(&beside) <= LONGEST_SOCKET_PATH {
        return Ok(beside);
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, home.as_os_str().as_bytes());
    let short: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let parent = if Uid::effective().is_root() { "/run" } else { "/tmp" };
    Ok(Path::new(parent).join(format!("wattle-{short}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_postmaster_tells_its_number_its_socket_and_whether_it_is_ready() {
        let text = "4711\n/var/lib/w/postgres/data\n1795000000\n5432\n/var/lib/w/postgres/run\n\n  1234 5\nready   \n";
        let expected = PostmasterFile { pid: 4711, socket_folder: "/var/lib/w/postgres/run".into(), ready: true };
        assert_eq!(PostmasterFile::parse(text), Some(expected));
        assert_eq!(PostmasterFile::parse("4711\n").map(|file| file.ready), Some(false));
        assert_eq!(PostmasterFile::parse(""), None);
    }

    #[test]
    fn a_folder_on_the_way_that_keeps_postgres_out_is_named() {
        let closed = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let home = closed.path().join("postgres");
        let (stranger, group) = (Uid::from_raw(4_000_000), Gid::from_raw(4_000_000));
        let words = ensure_reachable(&home, stranger, group).unwrap_err().to_string();
        assert!(words.contains(&format!("{} is closed to its account", closed.path().display())), "{words}");
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o701)).unwrap();
        assert!(ensure_reachable(&home, stranger, group).is_ok());
    }

    #[test]
    fn a_path_too_long_for_a_socket_gives_a_short_folder() {
        let short = Path::new("/var/lib/wattle-server/postgres");
        assert_eq!(socket_folder(short).unwrap(), short.join("run"));
        let long = PathBuf::from("/").join("x".repeat(120));
        assert!(socket_folder(&long).unwrap().as_os_str().len() < 40);
    }
}
