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
use crate::data_dir;

/// The longest path of a Unix socket, without its end.
const LONGEST_SOCKET_PATH: usize = 107;
/// More than any process number of Linux.
const NOBODY: i32 = 1 << 23;
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
    /// Postgres refuses to run as root: then as whom. `None` means: as whoever runs the
    /// coordinator.
    account: Option<(Uid, Gid)>,
}

impl Folder {
    /// Makes the folders below a data directory, private to the account that Postgres will run as.
    pub(crate) fn prepare(data_dir: &Path) -> anyhow::Result<Self> {
        data_dir::make_data_dir(data_dir)?;
        let data_dir = fs::canonicalize(data_dir)?;
        let account = account()?;
        let home = data_dir.join("postgres");
        make_private(&home, account)?;
        if let Some((uid, gid)) = account {
            ensure_reachable(&home, uid, gid)?;
        }
        let socket_folder = socket_folder(&home)?;
        make_private(&socket_folder, account)?;
        Ok(Self {
            data: home.join("data"),
            socket_folder,
            log: home.join("log"),
            home,
            account,
        })
    }

    /// The major version of the Postgres that made the cluster; `None` when there is none yet.
    pub(crate) fn major_version(&self) -> anyhow::Result<Option<u32>> {
        match fs::read_to_string(self.data.join("PG_VERSION")) {
            Ok(text) => Ok(Some(text.trim().parse().with_context(|| {
                format!("{} holds no Postgres cluster", self.data.display())
            })?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", self.data.display()))
            }
        }
    }

    /// Makes the cluster if there is none. It appears whole or not at all.
    pub(crate) fn initialise(&self, binaries: &Binaries) -> anyhow::Result<()> {
        if self.data.exists() {
            return Ok(());
        }
        tracing::info!(folder = %self.data.display(), postgres = binaries.major, "creating a \
            private Postgres cluster");
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
            bail!(
                "initdb failed: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        fs::rename(&unfinished, &self.data)?;
        fs::File::open(&self.home)?.sync_all()?;
        Ok(())
    }

    /// A command that runs as the account of Postgres, apart from the terminal's signals and from
    /// the environment of the coordinator.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.account {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Stops a Postgres that still runs here and waits for its end: the coordinator's lock is held,
    /// so it has lost its own coordinator.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + GONE_WITHIN;
        let mut told = false;
        while let Some(postmaster) = PostmasterFile::read(&self.data) {
            match process_of(postmaster.pid, &self.data) {
                // Postgres sees that the file is stale, and looks for children that were left
                // behind.
                Process::None => break,
                Process::NotIt => {
                    self.disown(postmaster.pid)?;
                    break;
                }
                Process::Runs if !told => {
                    tracing::info!(
                        pid = postmaster.pid,
                        "waiting for the Postgres of a former coordinator to end"
                    );
                    let _ = kill(Pid::from_raw(postmaster.pid), Signal::SIGINT);
                    told = true;
                }
                Process::Runs => {}
            }
            ensure!(
                Instant::now() < deadline,
                "process {} still uses {}",
                postmaster.pid,
                self.data.display()
            );
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Postgres obeys a `postmaster.pid` with the number of any living process, be it a zombie or a
    /// stranger by now: puts in a number that nobody has. The rest of the file stays, because by it
    /// Postgres finds children that were left behind.
    fn disown(&self, pid: i32) -> anyhow::Result<()> {
        let path = self.data.join("postmaster.pid");
        let text = fs::read_to_string(&path)?;
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        tracing::info!(pid, "postmaster.pid is stale");
        fs::write(&path, format!("{NOBODY}\n{rest}"))
            .context("cannot correct a stale postmaster.pid")
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

/// What a process number stands for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// The postmaster of the cluster.
    Runs,
    /// A zombie, or something else.
    NotIt,
    None,
}

/// Whether a process is the postmaster of a cluster. Reads only what every account may read.
pub(crate) fn process_of(pid: i32, data: &Path) -> Process {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Process::None;
    };
    // The name before it, in parentheses, may hold anything.
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().next());
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let names_data = arguments
        .split(|byte| *byte == 0)
        .any(|argument| argument == data.as_os_str().as_bytes());
    if names_data && !matches!(state, Some("Z" | "X")) {
        Process::Runs
    } else {
        Process::NotIt
    }
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
    bail!(
        "Postgres does not run as root, and there is neither an account `postgres` nor `nobody`: \
         run wattle-server as another user"
    );
}

/// Makes a folder that only the account of Postgres can enter, or checks that an existing one is
/// such.
fn make_private(folder: &Path, account: Option<(Uid, Gid)>) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            if let Some((uid, gid)) = account {
                chown(folder, Some(uid), Some(gid))
                    .with_context(|| format!("cannot hand over {}", folder.display()))?;
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

/// Says which folder on the way keeps the account of Postgres out, rather than letting Postgres
/// fail in its own words.
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
            "Postgres does not run as root, and {} is closed to its account (uid {uid}): chmod o+x \
             {0}, give another --data-dir, or run wattle-server as another user",
            ancestor.display()
        );
    }
    Ok(())
}

/// The folder of the socket: beside the data, or, where the path gets too long for a socket, a
/// short one named after it.
fn socket_folder(home: &Path) -> anyhow::Result<PathBuf> {
    let length = |folder: &Path| folder.join(format!(".s.PGSQL.{PORT}")).as_os_str().len();
    let beside = home.join("run");
    if length(&beside) <= LONGEST_SOCKET_PATH {
        return Ok(beside);
    }
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, home.as_os_str().as_bytes());
    let short: String = digest.as_ref()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let parent = if Uid::effective().is_root() {
        "/run"
    } else {
        "/tmp"
    };
    Ok(Path::new(parent).join(format!("wattle-{short}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_postmaster_tells_its_number_its_socket_and_whether_it_is_ready() {
        let text = "4711\n/var/lib/w/postgres/data\n1795000000\n5432\n/var/lib/w/postgres/run\n\n  \
            1234 5\nready   \n";
        let expected = PostmasterFile {
            pid: 4711,
            socket_folder: "/var/lib/w/postgres/run".into(),
            ready: true,
        };
        assert_eq!(PostmasterFile::parse(text), Some(expected));
        assert_eq!(
            PostmasterFile::parse("4711\n").map(|file| file.ready),
            Some(false)
        );
        assert_eq!(PostmasterFile::parse(""), None);
    }

    #[test]
    fn a_stale_file_is_disowned_and_keeps_what_postgres_needs_of_it() {
        let home = tempfile::tempdir().unwrap();
        let data = home.path().join("data");
        fs::create_dir(&data).unwrap();
        // This very process is alive and no Postgres.
        let stale = format!(
            "{}\n{}\n1795000000\n5432\n",
            std::process::id(),
            data.display()
        );
        fs::write(data.join("postmaster.pid"), &stale).unwrap();
        let folder = Folder {
            data: data.clone(),
            socket_folder: home.path().join("run"),
            log: home.path().join("log"),
            home: home.path().to_owned(),
            account: None,
        };
        folder.free().unwrap();
        let corrected = fs::read_to_string(data.join("postmaster.pid")).unwrap();
        assert_eq!(
            corrected,
            stale.replacen(&std::process::id().to_string(), &NOBODY.to_string(), 1)
        );
        assert_eq!(process_of(NOBODY, &data), Process::None);
    }

    #[test]
    fn a_folder_on_the_way_that_keeps_postgres_out_is_named() {
        let closed = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .unwrap();
        let home = closed.path().join("postgres");
        let (stranger, group) = (Uid::from_raw(4_000_000), Gid::from_raw(4_000_000));
        let words = ensure_reachable(&home, stranger, group)
            .unwrap_err()
            .to_string();
        assert!(
            words.contains(&format!(
                "{} is closed to its account",
                closed.path().display()
            )),
            "{words}"
        );
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
