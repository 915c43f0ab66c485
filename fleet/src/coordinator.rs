//! The coordinators that are measured: our own, or some that run already.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hyper::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use wattle_client::operator::OperatorClient;
use wattle_wire::{admin::Readiness, ids::Position, secret::Secret};

use crate::Options;

/// How long a coordinator may take to be ready.
const READY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Coordinators {
    /// Of the first coordinator.
    pub(crate) operator: OperatorClient,
    pub(crate) urls: Vec<String>,
    /// Empty where they are somebody else's.
    own: OwnCoordinators,
    _folder: Option<TempDir>,
}

/// Coordinators of our own, the one with the Postgres first.
#[derive(Debug, Default)]
struct OwnCoordinators(Vec<Own>);

/// A coordinator of our own.
#[derive(Debug)]
struct Own {
    child: Child,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Coordinators {
    pub(crate) async fn open(options: &Options) -> anyhow::Result<Self> {
        if let Some(token_file) = &options.token_file {
            let urls: Vec<_> = options
                .url
                .iter()
                .map(|url| url.trim_end_matches('/').to_owned())
                .collect();
            anyhow::ensure!(
                !urls.is_empty(),
                "--token-file is for the coordinator of --url"
            );
            return Ok(Self {
                operator: operator(&urls[0], Some(token_file), options.ca_file.as_deref())?,
                urls,
                own: OwnCoordinators::default(),
                _folder: None,
            });
        }
        let folder = tempfile::Builder::new().prefix("wattle-fleet-").tempdir()?;
        // A private Postgres may have to run as another user, who must get there.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            folder.path(),
            nix::sys::stat::Mode::from_bits_truncate(0o755),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        let (mut own, mut urls) = (OwnCoordinators::default(), Vec::new());
        let ca_file = folder.path().join("data-0/ca.crt");
        let ca_file = (!options.insecure_http).then_some(ca_file.as_path());
        let scheme = if options.insecure_http {
            "http"
        } else {
            "https"
        };
        for number in 0..options.replicas {
            let address = format!(
                "127.0.0.1:{}",
                TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()
            );
            let data = folder.path().join(format!("data-{number}"));
            let mut arguments = vec![
                "--listen".to_owned(),
                address.clone(),
                "--data-dir".to_owned(),
                data.display().to_string(),
            ];
            if options.insecure_http {
                arguments.push("--insecure-http".to_owned());
            }
            if number > 0 {
                if !options.insecure_http {
                    // All coordinators of a mesh show certificates of one authority.
                    fs::create_dir(&data)?;
                    fs::copy(folder.path().join("data-0/ca.pem"), data.join("ca.pem"))?;
                }
                arguments.extend([
                    "--database-url".to_owned(),
                    postgres_of(&folder.path().join("data-0"))?,
                ]);
            }
            let log = folder.path().join(format!("log-{number}"));
            own.0.push(Own {
                child: start(&arguments, &log)?,
                arguments,
                log,
            });
            let url = format!("{scheme}://{address}");
            if let Some(file) = ca_file {
                wait_for(file).await?;
            }
            wait_ready(&operator(&url, None, ca_file)?).await?;
            urls.push(url);
        }
        let token_file = folder.path().join("data-0/api-token");
        Ok(Self {
            operator: operator(&urls[0], Some(&token_file), ca_file)?,
            urls,
            own,
            _folder: Some(folder),
        })
    }

    /// Process ids of coordinators of our own.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.own.0.iter().map(|own| own.child.id()).collect()
    }

    /// Kills a coordinator of our own: one of several, which stays away, or the only one, which is
    /// started again. Gives the time until the agents had one that is ready; `None` where they are
    /// not ours.
    pub(crate) async fn kill_one(&mut self) -> anyhow::Result<Option<Duration>> {
        let begin = Instant::now();
        let Some(mut own) = self.own.0.pop() else {
            return Ok(None);
        };
        own.child.kill()?;
        own.child.wait()?;
        if self.own.0.is_empty() {
            own.child = start(&own.arguments, &own.log)?;
            self.own.0.push(own);
            wait_ready(&self.operator).await?;
        } else {
            self.urls.pop();
        }
        Ok(Some(begin.elapsed()))
    }

    /// How far a coordinator has come.
    pub(crate) async fn position(&self) -> anyhow::Result<Position> {
        Ok(self.operator.get::<Readiness>("/readyz").await?.position)
    }

    /// How many letters wait in the mailbox.
    pub(crate) async fn letters(&self) -> anyhow::Result<u64> {
        let metrics = self
            .operator
            .text(Method::GET, "/metrics", None::<&()>)
            .await?;
        let letters = str::from_utf8(&metrics)?
            .lines()
            .find_map(|line| line.strip_prefix("wattle_mailbox_letters ")?.parse().ok());
        letters.context("the metrics tell of no mailbox")
    }
}

async fn wait_ready(coordinator: &OperatorClient) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while coordinator.get::<Readiness>("/readyz").await.is_err() {
        if Instant::now() > deadline {
            bail!("the coordinator is not ready after {} s", READY.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

impl Drop for OwnCoordinators {
    fn drop(&mut self) {
        // The one with the Postgres last.
        while let Some(mut own) = self.0.pop() {
            // Gracefully, so that its Postgres ends with it.
            if let Ok(pid) = i32::try_from(own.child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = own.child.wait();
        }
    }
}

/// A client that believes the authority of a file or, without one, the public ones.
fn operator(
    url: &str,
    token_file: Option<&Path>,
    ca_file: Option<&Path>,
) -> anyhow::Result<OperatorClient> {
    let read = |file: &Path| {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    };
    let token = token_file.map(read).transpose()?.map(Secret::new);
    let authority = ca_file.map(read).transpose()?;
    OperatorClient::new(url, token, authority.as_deref().map(str::as_bytes))
}

/// Waits for a file that a coordinator makes when it starts for the first time.
async fn wait_for(file: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while !file.exists() {
        if Instant::now() > deadline {
            let (file, seconds) = (file.display(), READY.as_secs());
            bail!("the coordinator made no {file} within {seconds} s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn start(arguments: &[String], log: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe()?.with_file_name("wattle-server");
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command.spawn().with_context(|| {
        format!(
            "cannot start {}: build the workspace first",
            program.display()
        )
    })
}

/// The URL of the private Postgres of a coordinator; the fourth and fifth line of its
/// `postmaster.pid` are port and folder of its socket.
fn postgres_of(data_dir: &Path) -> anyhow::Result<String> {
    let file = data_dir.join("postgres/data/postmaster.pid");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = text.lines().skip(3);
    let (port, socket) = lines
        .next()
        .zip(lines.next())
        .context("the Postgres is not ready")?;
    Ok(format!(
        "postgres://wattle@localhost/postgres?host={socket}&port={port}"
    ))
}
